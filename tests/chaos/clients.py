"""Clients of all manners: patient, slow, gone. Each asks about its own picture."""

from __future__ import annotations

import asyncio
import base64
import functools
import io
import json
import random
import socket
import struct
import zlib
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import aiohttp
from aiohttp import web

from gateway.local.ports import LOOPBACK
from protos.process.settings import KIB
from tests.chaos.ledger import Ending, Exchange, Expectation, Ledger
from tests.chaos.stack import MODEL, REQUEST_SECONDS
from tests.e2e.questions import MAX_ANSWER_TOKEN_COUNT, Conversation, conversations

CHAT = "/v1/chat/completions"
# Encoding a picture is most of the work; the pictures of other requests are known by then.
FRESH_SHARE = 0.06
Manner = Literal["patient", "slow reader", "leaves"]
Source = Literal["data", "url", "slow url"]
# A client that has heard nothing for so long after the deadline says that the request hangs.
PATIENCE_SECONDS = 2 * REQUEST_SECONDS + 15.0
CONNECT_PAUSE_SECONDS = 0.2
SLOW_PICTURE_SECONDS = 0.7
SLOW_READ_SECONDS = 0.02
# So little fits into a slow reader's buffer that the gateway has to wait for it.
SLOW_READ_BYTE_COUNT = 4 * KIB
PICTURE_SIZE = (448, 448)  # one tile
PICTURE_COUNT = 12
PNG_HEADER_BYTE_COUNT = 33
# More than the gateway lets each request hold without counting it.
PADDING_BYTE_COUNT = 200 * KIB


@dataclass(frozen=True)
class Plan:
    """What one request asks, and how its client behaves.

    Attributes:
        is_fresh: whether nobody has seen the picture's file before; its pixels are known.
        padding_byte_count: bytes that a fresh picture's file has beside the picture.
        leaves_after: seconds until the client goes away, if it does.
    """

    number: int
    conversation: Conversation
    stream: bool = True
    choice_count: int = 1
    source: Source = "data"
    is_fresh: bool = False
    padding_byte_count: int = 0
    manner: Manner = "patient"
    leaves_after: float = 0.0

    @property
    def title(self) -> str:
        """The plan in a few words."""
        age = "fresh" if self.is_fresh else "known"
        picture = f"{age} picture by {self.source}" if self.conversation.pictures else "no picture"
        form = "stream" if self.stream else "whole"
        return f"{form}, n={self.choice_count}, {picture}, {self.manner}"

    @property
    def expectation(self) -> Expectation:
        """What must come back."""
        return Expectation(self.conversation.turns[0], self.stream, self.choice_count)

    def picture(self) -> bytes:
        """Returns the file of the picture, a PNG."""
        file = _file(self.conversation.pictures[0])
        if not self.is_fresh:
            return file
        return _with_comment(file, f"{self.number}".ljust(self.padding_byte_count))


@functools.cache
def questions() -> tuple[Conversation, ...]:
    """Returns single questions about nothing, or about one of a dozen pictures of one tile."""
    single = [
        one
        for one in conversations("tasks") + conversations("single")
        if len(one.turns) == 1 and len(one.pictures) <= 1
        if all(_size(path) == PICTURE_SIZE for path in one.pictures)
    ]
    pictures = [*dict.fromkeys(one.pictures for one in single if one.pictures)][:PICTURE_COUNT]
    return tuple(one for one in single if not one.pictures or one.pictures in pictures)


def about_a_picture(draw: random.Random) -> Conversation:
    """Returns one of the questions that only who sees the picture can answer."""
    return draw.choice([one for one in questions() if one.pictures])


def drawn_plan(seed: int, number: int, *, may_leave: bool = True) -> Plan:
    """Returns the plan of a request: always the same for a seed and a number."""
    draw = random.Random(f"{seed}/{number}")
    manners: Sequence[Manner] = ("patient", "slow reader", "leaves" if may_leave else "patient")
    sources: Sequence[Source] = ("data", "url", "slow url")
    return Plan(
        number,
        draw.choice(questions()),
        stream=draw.random() < 0.7,
        choice_count=draw.choice((1, 1, 1, 2)),
        source=draw.choices(sources, (7, 2, 1))[0],
        is_fresh=draw.random() < FRESH_SHARE,
        padding_byte_count=draw.choice((0, PADDING_BYTE_COUNT)),
        manner=draw.choices(manners, (17, 2, 3))[0],
        leaves_after=draw.uniform(0.0, 1.0),
    )


class PictureServer:
    """Serves the pictures of requests in flight over HTTP, some of them late.

    Attributes:
        slow_count: how many came late.
    """

    def __init__(self) -> None:
        self.port = 0
        self.slow_count = 0
        self.pictures: dict[int, bytes] = {}

    @asynccontextmanager
    async def running(self) -> AsyncIterator[PictureServer]:
        app = web.Application()
        app.add_routes(
            [web.get("/now/{number}", self._now), web.get("/later/{number}", self._late)]
        )
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0)
        await runner.setup()
        try:
            await web.TCPSite(runner, LOOPBACK, 0).start()
            self.port = runner.addresses[0][1]
            yield self
        finally:
            await runner.cleanup()

    def url(self, plan: Plan) -> str:
        """Returns where a plan's picture is, from when it has been put into `pictures`."""
        folder = "later" if plan.source == "slow url" else "now"
        return f"http://{LOOPBACK}:{self.port}/{folder}/{plan.number}"

    async def _now(self, request: web.Request) -> web.Response:
        picture = self.pictures.get(int(request.match_info["number"]))
        if picture is None:  # of a request that has ended, as a client left
            raise web.HTTPNotFound
        return web.Response(body=picture, content_type="image/png")

    async def _late(self, request: web.Request) -> web.Response:
        self.slow_count += 1
        await asyncio.sleep(SLOW_PICTURE_SECONDS)
        return await self._now(request)


class Clients:
    """Sends planned requests to gateways, and writes what comes of them into the ledger.

    As a load balancer does, they choose a gateway at random, and go on with another one when nobody
    listens there.

    Attributes:
        manner_counts: requests that were sent, by how their clients behaved.
    """

    def __init__(self, urls: Sequence[str], ledger: Ledger, pictures: PictureServer) -> None:
        self._urls = urls
        self._ledger = ledger
        self._pictures = pictures
        self.manner_counts: Counter[str] = Counter()

    @asynccontextmanager
    async def ready(self) -> AsyncIterator[Clients]:
        """Opens the sessions; every request has a connection of its own."""
        every = aiohttp.TCPConnector(limit=0, force_close=True)
        slow = aiohttp.TCPConnector(limit=0, force_close=True, socket_factory=_deaf_socket)
        untimed = aiohttp.ClientTimeout(total=None)
        async with (
            aiohttp.ClientSession(connector=every, timeout=untimed) as self._http,
            aiohttp.ClientSession(
                connector=slow, timeout=untimed, read_bufsize=SLOW_READ_BYTE_COUNT
            ) as self._slow_http,
        ):
            yield self

    async def ask(self, plan: Plan, gateway: str = "") -> Ending | None:
        """Sends a request, again and again while nobody listens because all gateways were ended.

        Args:
            plan: the request.
            gateway: the address of the one that gets it; empty: any.

        Returns:
            Its ending; None if it ended as it must not.
        """
        body = self._body(plan)
        try:
            while True:
                exchange = self._ledger.begin(plan.number, plan.title, plan.expectation)
                for exchange.gateway in [gateway] if gateway else self._shuffled(plan):
                    if await self._is_sent(plan, body, exchange):
                        self.manner_counts[plan.manner] += 1
                        return self._ledger.end(exchange)
                if not self._ledger.never_sent(exchange):
                    return None
                await asyncio.sleep(CONNECT_PAUSE_SECONDS)
        finally:
            self._pictures.pictures.pop(plan.number, None)

    def _shuffled(self, plan: Plan) -> list[str]:
        urls = sorted(self._urls)
        random.Random(f"{self._ledger.seed}/{plan.number}/gateway").shuffle(urls)
        return urls

    async def _is_sent(self, plan: Plan, body: bytes, exchange: Exchange) -> bool:
        """Sends a request and reads its answer; False when nobody listens."""
        leaves = plan.manner == "leaves"
        try:
            seconds = plan.leaves_after if leaves else PATIENCE_SECONDS
            await asyncio.wait_for(self._send(plan, body, exchange), seconds)
        except asyncio.TimeoutError:
            exchange.left, exchange.hung = leaves, not leaves
        except aiohttp.ClientConnectorError as error:
            exchange.note(f"not sent: {error}")
            return False
        except aiohttp.ClientError as error:
            exchange.broken = repr(error)
        exchange.note(exchange.broken or "ended")
        return True

    async def _send(self, plan: Plan, body: bytes, exchange: Exchange) -> None:
        slow = plan.manner == "slow reader"
        http = self._slow_http if slow else self._http
        headers = {"Content-Type": "application/json", "x-request-id": exchange.request_id}
        exchange.note("sent")
        url = f"{exchange.gateway}{CHAT}"
        async with http.post(url, data=io.BytesIO(body), headers=headers) as response:
            exchange.status = response.status
            exchange.note(f"status {response.status}")
            async for piece in response.content.iter_chunked(SLOW_READ_BYTE_COUNT):
                exchange.body += piece
                if slow:
                    await asyncio.sleep(SLOW_READ_SECONDS)

    def _body(self, plan: Plan) -> bytes:
        turn = plan.conversation.turns[0]
        parts: list[dict[str, Any]] = [{"type": "text", "text": turn.question}]
        if plan.conversation.pictures:
            parts.append({"type": "image_url", "image_url": {"url": self._picture_url(plan)}})
        messages: list[dict[str, Any]] = [{"role": "user", "content": parts}]
        if plan.conversation.system is not None:
            messages.insert(0, {"role": "system", "content": plan.conversation.system})
        return json.dumps(_fields(plan) | {"messages": messages}).encode()

    def _picture_url(self, plan: Plan) -> str:
        picture = plan.picture()
        if plan.source == "data":
            return f"data:image/png;base64,{base64.b64encode(picture).decode()}"
        self._pictures.pictures[plan.number] = picture
        return self._pictures.url(plan)


def _fields(plan: Plan) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "model": MODEL,
        "temperature": 0,
        "max_tokens": MAX_ANSWER_TOKEN_COUNT,
        "n": plan.choice_count,
    }
    if plan.manner == "slow reader":  # makes the answer long
        fields |= {"logprobs": True, "top_logprobs": 20}
    if plan.stream:
        fields |= {"stream": True, "stream_options": {"include_usage": True}}
    return fields


def _deaf_socket(info: Any) -> socket.socket:
    """Returns a client's socket whose receive buffer is small."""
    family, kind, protocol, *_ = info
    opened = socket.socket(family, kind, protocol)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SLOW_READ_BYTE_COUNT)
    return opened


@functools.cache
def _file(path: Path) -> bytes:
    return path.read_bytes()


def _size(path: Path) -> tuple[int, int]:
    width, height = struct.unpack(">II", _file(path)[16:24])
    return width, height


def _with_comment(png: bytes, comment: str) -> bytes:
    """Returns the same picture in another file."""
    chunk = b"tEXtnumber\0" + comment.encode()
    framed = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return png[:PNG_HEADER_BYTE_COUNT] + framed + png[PNG_HEADER_BYTE_COUNT:]
