"""Clients of the gateway, in processes of their own: no tensor library, so that they start fast."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import aiohttp

from tests.benchmarks.photo import photo

ANSWER_SECONDS = 120.0
HEADERS = {"Content-Type": "application/json"}


@dataclass(frozen=True)
class Question:
    """What every request asks; only its picture is its own."""

    model: str
    text: str
    width: int
    height: int
    token_count: int

    def body(self, seed: int) -> bytes:
        """Returns the request about picture number `seed`, for exactly token_count tokens."""
        picture = base64.b64encode(photo("JPEG", self.width, self.height, seed)).decode()
        url = {"url": f"data:image/jpeg;base64,{picture}"}
        content = [{"type": "image_url", "image_url": url}, {"type": "text", "text": self.text}]
        body: dict[str, Any] = {
            "model": self.model,
            "messages": [{"role": "user", "content": content}],
            "max_tokens": self.token_count,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        return json.dumps(body).encode()


class Answer(NamedTuple):
    """The moments of one answer, of time.monotonic, which all processes share; and its usage."""

    sent: float
    first: float
    last: float
    prompt_token_count: int
    output_token_count: int


def run_clients(
    url: str, bodies: Sequence[Sequence[bytes]], answer_seconds: float = ANSWER_SECONDS
) -> list[Answer]:
    """Runs one client for each list of bodies, side by side; each sends its bodies in turn.

    Raises:
        aiohttp.ClientError, ValueError: a request was refused, or its answer broke off.
        asyncio.TimeoutError: an answer took longer than answer_seconds.
    """
    return asyncio.run(_run_clients(url, bodies, answer_seconds))


async def _run_clients(
    url: str, bodies: Sequence[Sequence[bytes]], answer_seconds: float
) -> list[Answer]:
    timeout = aiohttp.ClientTimeout(total=answer_seconds)
    async with aiohttp.ClientSession(url, timeout=timeout, headers=HEADERS) as http:
        answers = await asyncio.gather(*(_client(http, own) for own in bodies))
    return [answer for own in answers for answer in own]


async def _client(http: aiohttp.ClientSession, bodies: Sequence[bytes]) -> list[Answer]:
    return [await _ask(http, body) for body in bodies]


async def _ask(http: aiohttp.ClientSession, body: bytes) -> Answer:
    sent = time.monotonic()
    async with http.post("/v1/chat/completions", data=body) as response:
        if response.status != 200:
            raise ValueError(f"{response.status}: {await response.text()}")
        # The gateway sends nothing, not even the headers' end, before the first token.
        events = [await response.content.readline()]
        first = time.monotonic()
        async for line in response.content:
            if line != b"\n":
                events.append(line)
    last = time.monotonic()
    if events[-1] != b"data: [DONE]\n":
        raise ValueError(f"the answer ended with {events[-1]!r}")
    usage = json.loads(events[-2].removeprefix(b"data: "))["usage"]
    return Answer(sent, first, last, usage["prompt_tokens"], usage["completion_tokens"])
