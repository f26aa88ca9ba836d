"""What the scripted LLM service says on the page, and how fast."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass

from protos.internvl.v1 import llm_pb2
from tests.fakes import ScriptedLLM


@dataclass
class PacedLLM(ScriptedLLM):
    """Says `tokens_per_second` of its texts; 0 says them all at once."""

    tokens_per_second: float = 0.0

    async def _answer(
        self, start: llm_pb2.GenerateStart
    ) -> AsyncGenerator[llm_pb2.GenerateResponse, None]:
        loop = asyncio.get_running_loop()
        due = loop.time()
        async for response in super()._answer(start):
            if self.tokens_per_second:
                due += 1 / self.tokens_per_second
                await asyncio.sleep(max(0.0, due - loop.time()))
            yield response


def in_pieces(text: str, size: int = 3) -> list[str]:
    """Returns a text cut as tokens are, so that markup is split anywhere."""
    return [text[start : start + size] for start in range(0, len(text), size)]


def long_answer(token_count: int, line_count: int = 2000) -> list[str]:
    """Returns the tokens of an answer with all that Markdown has, and a long block of code.

    Args:
        token_count: how many there are to be.
        line_count: lines of the code.
    """
    paragraph = "A paragraph with **bold** words, `code`, a [link](https://example.com) and more. "
    table = "\n\n| tile | tokens |\n| ---: | ---: |\n" + "".join(
        f"| {row} | {256 * row} |\n" for row in range(1, 9)
    )
    listing = "\n\n- one thing\n- another thing, *softly*\n  1. first\n  2. second\n\n"
    code = "```python\n" + "".join(f"tile_{n} = grid[{n}]\n" for n in range(line_count)) + "```\n\n"
    prose = "### A heading\n\n" + paragraph * 12 + table + listing
    text = prose * 4 + code + prose * 40
    size = max(1, len(text) // token_count)
    return in_pieces(text, size)[:token_count]
