"""Clients in a closed loop: each sends its next request when the one before has been answered."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import count

import aiohttp

from protos.process.logs import REQUEST_ID_KEY, new_request_id
from tests.benchmarks.crossover.workload import Question, Workload

# After a refusal, so that a full service is not asked without end.
PAUSE_SECONDS = 0.5
EVENT, DONE = b"data: ", b"data: [DONE]"
# Of an error, to tell.
ERROR_BYTE_COUNT = 300


@dataclass(frozen=True)
class Answer:
    """One request's end; moments on the clock of `time.time`, which the logs have too.

    Attributes:
        request_id: names it in the logs.
        sent, first, last: when it was sent, answered for the first time, and over.
        prompt_token_count, output_token_count: its usage; 0 when it failed.
        error: why it failed; empty when it did not.
        status: HTTP's; 0 where there was none.
        arrivals: when events came, one or several at a time.
    """

    request_id: str
    sent: float
    first: float
    last: float
    prompt_token_count: int = 0
    output_token_count: int = 0
    error: str = ""
    status: int = 200
    arrivals: Sequence[float] = ()

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


@dataclass
class EventStream:
    """A streamed answer as it came: when, HTTP's status, and all of its bytes."""

    sent: float
    arrivals: list[float] = field(default_factory=list)
    status: int = 0
    data: bytes = b""
    error: str = ""

    def events(self) -> list[bytes]:
        """Returns the JSON of its events.

        Raises:
            ValueError: it broke off, or was an error.
        """
        lines = [line for line in self.data.splitlines() if line.startswith(EVENT)]
        if self.error or self.status != 200 or lines[-1:] != [DONE]:
            raise ValueError(self.error or f"{self.status}: {self.data[-ERROR_BYTE_COUNT:]!r}")
        return [line.removeprefix(EVENT) for line in lines[:-1]]


async def receive(
    http: aiohttp.ClientSession, url: str, body: bytes, request_id: str
) -> EventStream:
    """Sends one request and reads its stream to the end."""
    headers = {"Content-Type": "application/json", REQUEST_ID_KEY: request_id}
    stream, parts = EventStream(time.time()), []
    try:
        async with http.post(f"{url}/v1/chat/completions", data=body, headers=headers) as response:
            stream.status = response.status
            async for part in response.content.iter_any():
                if EVENT in part:  # and no comment, by which a silent stream is kept alive
                    stream.arrivals.append(time.time())
                parts.append(part)
    except aiohttp.ClientError as error:
        stream.error = repr(error)
    stream.data = b"".join(parts)
    return stream


async def ask(http: aiohttp.ClientSession, url: str, body: bytes) -> Answer:
    """Sends one request and reads its stream to the end."""
    request_id = new_request_id()
    stream = await receive(http, url, body, request_id)
    last = time.time()
    first, *_ = [*stream.arrivals, stream.sent]
    answer = partial(
        Answer, request_id, stream.sent, first, last, status=stream.status, arrivals=stream.arrivals
    )
    try:
        usage = json.loads(stream.events()[-1])["usage"]
    except ValueError as error:
        return answer(error=str(error))
    return answer(usage["prompt_tokens"], usage["completion_tokens"])
