"""Clients in a closed loop: each sends its next request when the one before has been answered."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count

import aiohttp

from protos.process.logs import REQUEST_ID_KEY, new_request_id
from tests.benchmarks.crossover.workload import Question, Workload

# After a refusal, so that a full service is not asked without end.
PAUSE_SECONDS = 0.5
DONE = b"data: [DONE]"


@dataclass(frozen=True)
class Answer:
    """One request's end; moments on the clock of `time.time`, which the logs have too.

    Attributes:
        request_id: names it in the logs.
        sent, first, last: when it was sent, answered for the first time, and over.
        prompt_token_count, output_token_count: its usage; 0 when it failed.
        error: why it failed; empty when it did not.
    """

    request_id: str
    sent: float
    first: float
    last: float
    prompt_token_count: int = 0
    output_token_count: int = 0
    error: str = ""

    @property
    def first_token_seconds(self) -> float:
        """From sending to the first token (TTFT)."""
        return self.first - self.sent

    @property
    def output_token_seconds(self) -> float:
        """Of each token after the first (TPOT)."""
        return (self.last - self.first) / max(1, self.output_token_count - 1)


@dataclass
class ClosedLoop:
    """A load.

    Attributes:
        urls: the gateways. A request goes where the digest of its first picture says, so that the
            same picture always meets the service that may hold it.
        workload: what is asked.
        client_count: how many clients ask at a time.
        answer_count: after so many answers the load ends, whatever is still on its way.
        seconds: the longest time that it goes on for.
        answers: those that have come, in order.
    """

    urls: Sequence[str]
    workload: Workload
    client_count: int
    answer_count: int
    seconds: float
    answers: list[Answer] = field(default_factory=list)

    async def run(self) -> list[Answer]:
        """Asks, and returns the answers in the order in which they ended."""
        enough = asyncio.Event()
        numbers = count()
        timeout = aiohttp.ClientTimeout(total=None)
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as http:
            clients = [
                asyncio.create_task(self._client(http, numbers, enough))
                for _ in range(self.client_count)
            ]
            try:
                await asyncio.wait_for(enough.wait(), self.seconds)
            except asyncio.TimeoutError:
                pass
            finally:
                for client in clients:
                    client.cancel()
                ends = await asyncio.gather(*clients, return_exceptions=True)
        for error in ends:
            if isinstance(error, Exception):  # none but a bug of ours ends a client
                raise error
        return self.answers

    async def _client(
        self, http: aiohttp.ClientSession, numbers: count[int], enough: asyncio.Event
    ) -> None:
        while True:
            question = self.workload.question(next(numbers))
            answer = await ask(http, self._url(question), question.body)
            self.answers.append(answer)
            if len(self.answers) >= self.answer_count:
                enough.set()
            if answer.error:
                await asyncio.sleep(PAUSE_SECONDS)

    def _url(self, question: Question) -> str:
        return self.urls[int.from_bytes(question.first_picture[:8], "big") % len(self.urls)]


async def ask(http: aiohttp.ClientSession, url: str, body: bytes) -> Answer:
    """Sends one request and reads its stream to the end."""
    request_id = new_request_id()
    headers = {"Content-Type": "application/json", REQUEST_ID_KEY: request_id}
    sent = first = time.time()
    lines: list[bytes] = []
    try:
        async with http.post(f"{url}/v1/chat/completions", data=body, headers=headers) as response:
            # The gateway sends nothing, not even the headers' end, before the first token.
            lines.append(await response.content.readline())
            first = time.time()
            lines.extend([line async for line in response.content])
    except aiohttp.ClientError as error:
        return Answer(request_id, sent, first, time.time(), error=repr(error))
    last = time.time()
    events = [line.strip() for line in lines if line.strip()]
    if response.status != 200 or events[-1:] != [DONE]:
        return Answer(request_id, sent, first, last, error=f"{response.status}: {events[-1:]!r}")
    usage = json.loads(events[-2].removeprefix(b"data: "))["usage"]
    counts = usage["prompt_tokens"], usage["completion_tokens"]
    return Answer(request_id, sent, first, last, *counts)
