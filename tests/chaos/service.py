"""`python -m tests.chaos.service MODULE ...`: one of our services, whose log has each call of it.

A call is logged when it begins, and when it has ended well. So the log of a process that was killed
says what was in flight in it.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from functools import partial
from typing import Any

import grpc
import structlog

from protos.process import server
from protos.process.calls import CallInterceptor, Context
from protos.process.logs import request_id_of

logger = structlog.get_logger()
OWN_SERVICES = "/internvl."
BEGUN, OVER = "call_begun", "call_over"


class NotingInterceptor(CallInterceptor):
    """Logs the calls of our own services."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        handler = await super().intercept_service(continuation, handler_call_details)
        if handler is None or not handler_call_details.method.startswith(OWN_SERVICES):
            return handler
        call = partial(_noted, handler, request_id_of(handler_call_details.invocation_metadata))
        return grpc.stream_stream_rpc_method_handler(call, None, handler.response_serializer)


async def _noted(
    handler: Any, request_id: str, requests: AsyncIterator[bytes], context: Context
) -> AsyncGenerator[Any, None]:
    logger.info(BEGUN, request_id=request_id)
    async with aclosing(handler.stream_stream(requests, context)) as responses:
        async for response in responses:
            yield response
    logger.info(OVER, request_id=request_id)


def main() -> None:
    """Runs the module with the other arguments."""
    module = sys.argv.pop(1)
    setattr(server, "CallInterceptor", NotingInterceptor)  # noqa: B010 - mypy would forbid it
    importlib.import_module(f"{module}.__main__").main()


if __name__ == "__main__":
    main()
