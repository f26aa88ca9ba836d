"""Clients' connections: how many there may be, how long each may keep us waiting, and their end."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, cast

import structlog
from aiohttp import hdrs, web
from aiohttp.http_exceptions import LineTooLong

from gateway.descriptors import SPARE_COUNT
from gateway.listening import RareEvent, accept
from gateway.openai.errors import HTTPRefusalError, error_response
from gateway.tasks import owning
from protos.errors import InvalidArgumentError, ServiceError

logger = structlog.get_logger()

# Without the versions that aiohttp would tell everybody.
SERVER_NAME = "internvl-gateway"
SWEEP_SECONDS = 0.3
PARTING_SECONDS = 1.0


@dataclass(frozen=True)
class ConnectionLimits:
    """What clients may hold.

    Attributes:
        max_count: connections that are open.
        header_seconds: from the first byte of a request's head to its last.
        idle_seconds: without a request, or without reading on in the end of an answer.
    """

    max_count: int
    header_seconds: float
    idle_seconds: float


class Connections:
    """All connections of the process."""

    def __init__(self, limits: ConnectionLimits) -> None:
        self.limits = limits
        self._open: set[Connection] = set()
        self._idle: dict[Connection, None] = {}  # without a request; the longest first
        self._refused = RareEvent("connections_refused")

    def __len__(self) -> int:
        return len(self._open)

    def admit(self, connection: Connection) -> bool:
        """Takes a new connection in; where there is no room, the longest idle one has to go."""
        if self._is_full():
            self._close_longest_idle()
        connection.is_spare = self._is_full()
        if len(self._open) >= self.limits.max_count + SPARE_COUNT:
            self._refused.note()
            return False
        self._open.add(connection)
        self._idle[connection] = None
        return True

    def _is_full(self) -> bool:
        return len(self._open) >= self.limits.max_count

    def _close_longest_idle(self) -> bool:
        # Not one whose client still has to read the end of an answer.
        connection = next((each for each in self._idle if not each.unsent_byte_count), None)
        if connection is None:
            return False
        self.forget(connection)
        connection.force_close()
        return True

    def note_busy(self, connection: Connection) -> None:
        """A request has come."""
        self._idle.pop(connection, None)

    def note_idle(self, connection: Connection) -> None:
        """Its answer is sent."""
        if connection in self._open:
            self._idle[connection] = None

    def forget(self, connection: Connection) -> None:
        """The connection has ended."""
        self._open.discard(connection)
        self._idle.pop(connection, None)

    @asynccontextmanager
    async def served(
        self, listeners: Sequence[socket.socket], connect: Callable[[], asyncio.Protocol]
    ) -> AsyncIterator[None]:
        """Accepts connections, and ends those that stall, within the block."""
        tasks = [
            asyncio.create_task(accept(listener, connect, self._close_longest_idle))
            for listener in listeners
        ]
        async with owning(asyncio.create_task(self._sweep()), *tasks):
            yield

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            now = asyncio.get_running_loop().time()
            for connection in tuple(self._open):
                connection.check(now)


class Connection(web.RequestHandler):
    """One client's connection, as aiohttp serves it, but bounded.

    Attributes:
        is_spare: it came when all others were busy: for a health check.
        leaves_unread: no more is read from it, and it ends with the answer.
    """

    def __init__(self, server: web.Server, connections: Connections, **options: Any) -> None:
        """`options` are aiohttp's."""
        # aiohttp's own limit of idle time is for the worst case: it cannot see that a head comes.
        idle_seconds = connections.limits.idle_seconds + connections.limits.header_seconds
        loop = asyncio.get_running_loop()
        super().__init__(server, loop=loop, keepalive_timeout=idle_seconds, **options)
        self.is_spare = False
        self.leaves_unread = False
        self._connections = connections
        self._wire: asyncio.Transport | None = None  # aiohttp lets go of its own before the end
        self._request: web.BaseRequest | None = None
        self._is_answered = False
        self._head_since: float | None = None
        self._progress_at = loop.time()
        self._unsent_byte_count = 0
        self._jammed: web.BaseRequest | None = None

    @property
    def unsent_byte_count(self) -> int:
        """How many bytes the client has still to take."""
        return self._wire.get_write_buffer_size() if self._wire else 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begins to serve, if there is room."""
        self._wire = cast(asyncio.Transport, transport)
        if self._connections.admit(self):
            super().connection_made(transport)
        else:
            self._wire.abort()

    def connection_lost(self, exc: BaseException | None) -> None:
        """Ends what is done for the client."""
        self._connections.forget(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Takes bytes from the client."""
        if data and self._request is None and self._head_since is None:
            self._head_since = self._loop.time()
        super().data_received(data)
        self._end_broken_body()

    def begin(self, request: web.BaseRequest) -> None:
        """A request's head has come, and its handler runs."""
        self._request, self._is_answered, self._head_since = request, False, None
        self._connections.note_busy(self)
        self._end_broken_body()

    def leave_unread(self, request: web.BaseRequest) -> None:
        """Reads no more of a request's body, unless all of it has come."""
        if self._wire is not None and not request.content.is_eof():
            self.leaves_unread = True
            self._lingering_time = 0.0  # for which aiohttp would read it after the answer
            self._wire.pause_reading()
            self.close()

    def _end_broken_body(self) -> None:
        """Tells a request that its body is malformed: what it waits for will never come.

        aiohttp leaves it at queueing the answer. Before a body's end nothing else can be queued.
        """
        request = self._request
        if request is not None and self._messages and not request.content.is_eof():
            request.content.set_exception(web.RequestPayloadError("malformed"))

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Sends the rest of an answer."""
        if isinstance(resp, web.HTTPExpectationFailed):  # raised before our handlers
            sentence = "the request expects what this server does not know"
            resp = error_response(HTTPRefusalError(resp, sentence))
        self._is_answered = True
        self._progress_at = self._loop.time()
        try:
            finished = await super().finish_response(request, resp, start_time)
        finally:
            self._request, self._head_since = None, None
            self._progress_at = self._loop.time()
            self._connections.note_idle(self)
        if self.leaves_unread:
            await self._part()
        return finished

    async def _part(self) -> None:
        """Gives a client that still sends a moment to read the answer; then its data meet a reset.

        Node's fetch, e.g., shows nothing of an answer that comes with a reset.
        """
        if self._wire is not None and self._wire.can_write_eof():
            self._wire.write_eof()
        await asyncio.sleep(PARTING_SECONDS)

    def check(self, now: float) -> None:
        """Ends the connection if its client keeps us waiting too long."""
        limits = self._connections.limits
        if self._request is not None and not self._is_answered:
            self._check_pipeline(self._request)
        elif self._head_since is not None and now - self._head_since > limits.header_seconds:
            self._refuse_head()
        elif self._has_stalled(now):
            self._abort()

    def _check_pipeline(self, request: web.BaseRequest) -> None:
        """Reads on where a full pipeline of requests hides whether the client is still there.

        What it has sent beyond the request is dropped then, and the connection ends with the
        answer. Seen twice, for a burst of short requests may pass.
        """
        wire = self._wire
        if wire is None or wire.is_reading() or wire.is_closing() or not request.content.is_eof():
            self._jammed = None
        elif self._jammed is request:
            self.close()
            wire.resume_reading()
        else:
            self._jammed = request

    def _has_stalled(self, now: float) -> bool:
        if (byte_count := self.unsent_byte_count) != self._unsent_byte_count:
            self._unsent_byte_count, self._progress_at = byte_count, now
        return now - self._progress_at > self._connections.limits.idle_seconds

    def _refuse_head(self) -> None:
        if self._wire and not self._wire.is_closing():
            seconds = self._connections.limits.header_seconds
            text = f"the request's head did not arrive within {seconds:g} seconds"
            refusal = HTTPRefusalError(web.HTTPRequestTimeout(text=text))
            self._wire.write(_raw(error_response(refusal)))
        self._head_since = None
        self.force_close()

    def _abort(self) -> None:
        if self._wire:
            self._wire.abort()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answers what is not HTTP, of which nothing is repeated, and bugs outside of handlers."""
        if request.writer.output_size:
            raise ConnectionError("an answer has begun already")
        error: ServiceError
        if status < 500:
            logger.info("malformed_request", status=status)
            error = InvalidArgumentError(self._complaint(exc))
        else:
            logger.error("bug", exc_info=exc)
            error = ServiceError("internal error; the gateway's log has it")
        response = error_response(error)
        response.headers[hdrs.SERVER] = SERVER_NAME
        response.force_close()
        return response

    def _complaint(self, error: BaseException | None) -> str:
        if isinstance(error, LineTooLong):
            return f"a line of the request's head is longer than {self.max_line_size} bytes"
        return "the request is not valid HTTP"


def _raw(response: web.Response) -> bytes:
    """Returns the bytes of an answer to what was never a request, after which nothing comes."""
    body = cast(bytes, response.body)
    head = (
        f"HTTP/1.1 {response.status} {response.reason}\r\nServer: {SERVER_NAME}\r\n"
        f"Content-Type: application/json; charset=utf-8\r\nContent-Length: {len(body)}\r\n"
        "Connection: close\r\n\r\n"
    )
    return head.encode() + body
