"""Conversations about pictures with several gateways, each turn of which has an id in all logs."""

from __future__ import annotations

import asyncio
import base64
import io
import itertools
import json
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from tests.fakes import MODEL
from tests.replicas.scripted import USUAL, Manner

CHAT = "/v1/chat/completions"
CONCURRENCY = 20
PATIENCE_SECONDS = 60.0
# Answers that show that a load goes on.
FURTHER_COUNT = 60


def picture_part(content: str) -> dict[str, Any]:
    """Returns the part of a message with a file of this content, as a scripted service takes it."""
    url = "data:image/png;base64," + base64.b64encode(content.encode()).decode()
    return {"type": "image_url", "image_url": {"url": url}}


def text_part(text: str) -> dict[str, Any]:
    """Returns the part of a message with a text."""
    return {"type": "text", "text": text}


@dataclass
class Answer:
    """What came of a request.

    Attributes:
        sent: when it was asked, as time.time() has it.
        seconds: until its end.
        body: all of it.
    """

    request_id: str
    sent: float
    status: int
    seconds: float
    body: bytes

    @property
    def text(self) -> str:
        """What the model said in an answer that is no stream."""
        assert self.status == 200, self.body
        return str(json.loads(self.body)["choices"][0]["message"]["content"])

    @property
    def is_whole_stream(self) -> bool:
        """Whether it is a stream that has come to its end, without an error."""
        return self.status == 200 and self.body.endswith(b"data: [DONE]\n\n")


@dataclass
class Talk:
    """A conversation; `say` adds the user's next message to it."""

    name: str
    messages: list[dict[str, Any]] = field(default_factory=list)

    def say(self, *parts: dict[str, Any]) -> None:
        """Adds a message of the user's."""
        self.messages.append({"role": "user", "content": [*parts]})

    def hear(self, text: str) -> None:
        """Adds the model's answer."""
        self.messages.append({"role": "assistant", "content": text})


def about_a_picture(name: str, picture: str = "", manner: Manner = USUAL) -> Talk:
    """Returns a conversation that begins with a picture; by default, with one of its own."""
    talk = Talk(name)
    picture = picture or f"picture of {name}"
    talk.say(text_part(f"What is this, in {manner}?"), picture_part(picture))
    return talk


class Callers:
    """Clients of some gateways, who take them in turn."""

    def __init__(self, sessions: Sequence[aiohttp.ClientSession]) -> None:
        self.sessions = sessions
        self._turns = itertools.cycle(sessions)
        self._numbers = itertools.count()

    async def ask(self, messages: Sequence[dict[str, Any]], name: str, **fields: Any) -> Answer:
        """Sends a chat request to the next gateway, with an id that begins with a name."""
        request_id = f"{name}.{next(self._numbers)}"
        body = json.dumps({"model": MODEL, "messages": [*messages], **fields}).encode()
        headers = {"Content-Type": "application/json", "x-request-id": request_id}
        sent = time.time()
        async with next(self._turns).post(CHAT, data=io.BytesIO(body), headers=headers) as response:
            data = await response.read()
            return Answer(request_id, sent, response.status, time.time() - sent, data)

    async def go_on(self, talks: Iterable[Talk], name: str, **fields: Any) -> list[Answer]:
        """Sends the next turn of each conversation; those answered have the answer added.

        The request's id begins with the conversation's name and that of the round.
        """
        places = asyncio.Semaphore(CONCURRENCY)

        async def ask(talk: Talk) -> Answer:
            async with places:
                answer = await self.ask(talk.messages, f"{talk.name}.{name}", **fields)
            talk.hear(answer.text)
            return answer

        return [*await asyncio.gather(*map(ask, talks))]

    async def ready(self) -> list[tuple[int, Any]]:
        """Returns what each gateway says of its readiness."""
        return [await self._ready(one) for one in self.sessions]

    async def _ready(self, session: aiohttp.ClientSession) -> tuple[int, Any]:
        async with session.get("/health/ready") as response:
            return response.status, await response.json()


@asynccontextmanager
async def callers_of(urls: Sequence[str]) -> AsyncIterator[Callers]:
    """Yields clients of these gateways."""
    timeout = aiohttp.ClientTimeout(total=PATIENCE_SECONDS)
    sessions = [
        aiohttp.ClientSession(url, connector=aiohttp.TCPConnector(limit=0), timeout=timeout)
        for url in urls
    ]
    try:
        yield Callers(sessions)
    finally:
        for session in sessions:
            await session.close()


class Load:
    """Requests that go on until the block is left, each about a picture of its own.

    Attributes:
        answers: of those that have ended, in order.
    """

    def __init__(self, callers: Callers, name: str) -> None:
        self.answers: list[Answer] = []
        self._callers = callers
        self._name = name
        self._numbers = itertools.count()
        self._mark = 0

    @property
    def request_ids(self) -> set[str]:
        """Those that have been answered."""
        return {answer.request_id for answer in self.answers}

    def has_gone_on(self) -> bool:
        """Says whether many more have been answered since this was first asked of late."""
        self._mark = self._mark or len(self.answers)
        gone_on = len(self.answers) >= self._mark + FURTHER_COUNT
        if gone_on:
            self._mark = 0
        return gone_on

    def failed(self) -> list[Answer]:
        """Returns the answers that are errors."""
        return [answer for answer in self.answers if answer.status != 200]

    @asynccontextmanager
    async def running(self, client_count: int) -> AsyncIterator[Load]:
        """Sends; when the block is left, waits for the answers."""
        stop = asyncio.Event()
        clients = [asyncio.create_task(self._send(stop)) for _ in range(client_count)]
        try:
            yield self
        finally:
            stop.set()
            await asyncio.gather(*clients)

    async def _send(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            talk = about_a_picture(f"{self._name}.{next(self._numbers)}")
            self.answers.append(await self._callers.ask(talk.messages, talk.name))
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(stop.wait(), 0.05)
