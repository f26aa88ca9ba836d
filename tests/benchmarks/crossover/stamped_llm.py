"""The LLM service with one more line in its log: when a request's embeddings have arrived.

`python -m tests.benchmarks.crossover.stamped_llm [the service's own options]`
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from unittest.mock import patch

import structlog

from llm_service import __main__ as llm_service
from llm_service import generator
from llm_service.images import RequestImages
from llm_service.tables import TableMessage

logger = structlog.get_logger()
ARRIVED = "embeddings_arrived"


class StampedImages(RequestImages):
    """Images that tell when they are complete."""

    async def receive(self, messages: AsyncIterator[TableMessage]) -> AsyncGenerator[int, None]:
        async with aclosing(super().receive(messages)) as read:
            async for index in read:
                yield index
        logger.info(ARRIVED)


def main() -> None:
    """Runs the service."""
    with patch.object(generator, "RequestImages", StampedImages):
        llm_service.main()


if __name__ == "__main__":
    main()
