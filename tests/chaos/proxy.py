"""A small TCP proxy that does to bytes what bad networks do, in toxiproxy's vocabulary.

All chance comes from one seed. Each toxic counts how often it struck: a fault that has not struck
has proven nothing.
"""

from __future__ import annotations

import asyncio
import random
import re
import socket
import struct
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from gateway.local.ports import LOOPBACK

# Of the client that speaks: upstream is what it sends, downstream what it gets.
Direction = Literal["upstream", "downstream"]
DIRECTIONS: tuple[Direction, Direction] = ("upstream", "downstream")
PIECE_BYTE_COUNT = 64 * 1024
# Pieces that wait in one direction of a connection; then the sender feels it.
MAX_PIECE_COUNT = 16


class BrokenLinkError(Exception):
    """A toxic ends the connection; `reset` says whether by a RST."""

    def __init__(self, *, reset: bool = False) -> None:
        super().__init__()
        self.reset = reset


class HalfClosedError(Exception):
    """A toxic ends one direction of the connection; the other goes on."""


@dataclass(eq=False)
class Toxic:
    """What happens to the bytes of one direction.

    Attributes:
        strike_count: pieces, or ends of connections, that it has changed or held up.
    """

    strike_count: int = field(default=0, init=False)

    @property
    def kind(self) -> str:
        """Its name in toxiproxy's vocabulary, such as slow_close."""
        return re.sub("(?<=[a-z])(?=[A-Z])", "_", type(self).__name__).lower()

    def cut(self, piece: bytes, draw: random.Random) -> list[bytes]:
        """Returns what becomes of a piece."""
        return [piece]

    async def hold(self, piece: bytes, arrival: float, draw: random.Random) -> None:
        """Returns when a piece may go on.

        Raises:
            BrokenLinkError, HalfClosedError: it never may.
        """

    async def hold_end(self) -> None:
        """Returns when the end of a direction may be passed on."""


@dataclass(eq=False)
class Latency(Toxic):
    """Every piece comes later; with jitter, each by another time. Their order stays."""

    seconds: float
    jitter_seconds: float = 0.0

    async def hold(self, piece: bytes, arrival: float, draw: random.Random) -> None:
        self.strike_count += 1
        delay = max(0.0, self.seconds + draw.uniform(-1, 1) * self.jitter_seconds)
        await asyncio.sleep(arrival + delay - asyncio.get_running_loop().time())


@dataclass(eq=False)
class Bandwidth(Toxic):
    """Only so many bytes a second pass."""

    bytes_per_second: float

    async def hold(self, piece: bytes, arrival: float, draw: random.Random) -> None:
        self.strike_count += 1
        await asyncio.sleep(len(piece) / self.bytes_per_second)


@dataclass(eq=False)
class Slicer(Toxic):
    """Pieces are cut into crumbs of about one size, with a pause after each."""

    byte_count: int
    seconds: float = 0.0

    def cut(self, piece: bytes, draw: random.Random) -> list[bytes]:
        crumbs = []
        while piece:
            size = draw.randint(1, 2 * self.byte_count)
            crumbs.append(piece[:size])
            piece = piece[size:]
        self.strike_count += len(crumbs) > 1
        return crumbs

    async def hold(self, piece: bytes, arrival: float, draw: random.Random) -> None:
        await asyncio.sleep(self.seconds)


@dataclass(eq=False)
class Corrupt(Toxic):
    """One bit of this share of the pieces is another one."""

    share: float

    def cut(self, piece: bytes, draw: random.Random) -> list[bytes]:
        if draw.random() >= self.share:
            return [piece]
        self.strike_count += 1
        changed = bytearray(piece)
        changed[draw.randrange(len(piece))] ^= 1 << draw.randrange(8)
        return [bytes(changed)]


@dataclass(eq=False)
class LimitData(Toxic):
    """The connection that brings the bytes over a limit is closed, and each one after it."""

    byte_count: int

    async def hold(self, piece: bytes, arrival: float, draw: random.Random) -> None:
        self.byte_count -= len(piece)
        if self.byte_count < 0:
            self.strike_count += 1
            raise BrokenLinkError


@dataclass(eq=False)
class Timeout(Toxic):
    """Nothing passes, and after some time the connection is closed."""

    seconds: float

    async def hold(self, piece: bytes, arrival: float, draw: random.Random) -> None:
        self.strike_count += 1
        await asyncio.sleep(self.seconds)
        raise BrokenLinkError


@dataclass(eq=False)
class ResetPeer(Toxic):
    """Some time after a piece, both ends get a RST instead of it."""

    seconds: float = 0.0

    async def hold(self, piece: bytes, arrival: float, draw: random.Random) -> None:
        self.strike_count += 1
        await asyncio.sleep(self.seconds)
        raise BrokenLinkError(reset=True)


@dataclass(eq=False)
class HalfClose(Toxic):
    """The direction ends instead of the next piece, and the other one goes on."""

    async def hold(self, piece: bytes, arrival: float, draw: random.Random) -> None:
        self.strike_count += 1
        raise HalfClosedError


@dataclass(eq=False)
class SlowClose(Toxic):
    """The end of a direction is passed on some time after it came."""

    seconds: float

    async def hold_end(self) -> None:
        self.strike_count += 1
        await asyncio.sleep(self.seconds)


class Proxy:
    """Stands before one server. Toxics may come and go while connections live.

    Attributes:
        host, port: where it listens; port 0 takes a free one when it runs.
        connection_count: connections that it has taken.
        byte_counts: what it has passed on, by direction.
    """

    def __init__(
        self, target_port: int, seed: int | str, host: str = LOOPBACK, port: int = 0
    ) -> None:
        self.host = host
        self.port = port
        self.connection_count = 0
        self.byte_counts: dict[Direction, int] = defaultdict(int)
        self._target_port = target_port
        self._draw = random.Random(seed)
        self._toxics: dict[Direction, list[Toxic]] = {name: [] for name in DIRECTIONS}
        self._links: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Proxy]:
        """Listens; on leaving, all connections are closed."""
        server = await asyncio.start_server(self._serve, self.host, self.port)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            for link in self._links:
                link.cancel()
            await asyncio.gather(*self._links, return_exceptions=True)

    @asynccontextmanager
    async def poisoned(self, toxic: Toxic, direction: Direction) -> AsyncIterator[Toxic]:
        """Applies a toxic to a direction of all connections, those that live and those to come."""
        self._toxics[direction].append(toxic)
        try:
            yield toxic
        finally:
            self._toxics[direction].remove(toxic)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link = asyncio.create_task(self._link(reader, writer))
        self._links.add(link)
        link.add_done_callback(self._links.discard)
        with suppress(asyncio.CancelledError):
            await link

    async def _link(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Joins a client and the server until both directions have ended, or one of them broke."""
        self.connection_count += 1
        writers = [writer]
        pumps: list[asyncio.Task[None]] = []
        reset = True  # a server that is not there is a connection that breaks at once
        try:
            back, forth = await asyncio.open_connection(LOOPBACK, self._target_port)
            writers.append(forth)
            pumps = [
                asyncio.create_task(self._pump(reader, forth, "upstream")),
                asyncio.create_task(self._pump(back, writer, "downstream")),
            ]
            await asyncio.gather(*pumps)
            reset = False
        except BrokenLinkError as error:
            reset = error.reset
        except OSError:
            pass
        finally:
            for pump in pumps:
                pump.cancel()
            for end in writers:
                _close(end, reset=reset)

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, direction: Direction
    ) -> None:
        queue: asyncio.Queue[Arrived] = asyncio.Queue(MAX_PIECE_COUNT)
        reading = asyncio.create_task(_read(reader, queue))
        try:
            while (arrived := await queue.get()).data:
                await self._pass(arrived, writer, direction)
            if arrived.data is None:
                raise BrokenLinkError(reset=True)
            for toxic in [*self._toxics[direction]]:
                await toxic.hold_end()
            writer.write_eof()
        except HalfClosedError:
            writer.write_eof()
        finally:
            reading.cancel()

    async def _pass(
        self, arrived: Arrived, writer: asyncio.StreamWriter, direction: Direction
    ) -> None:
        toxics = [*self._toxics[direction]]
        pieces = [arrived.data or b""]
        for toxic in toxics:
            pieces = [crumb for piece in pieces for crumb in toxic.cut(piece, self._draw)]
        for piece in pieces:
            for toxic in toxics:
                await toxic.hold(piece, arrived.time, self._draw)
            writer.write(piece)
            await writer.drain()
            self.byte_counts[direction] += len(piece)


class Arrived(NamedTuple):
    """What came in, and when: no bytes are the end of the direction, None is a RST."""

    time: float
    data: bytes | None


async def _read(reader: asyncio.StreamReader, queue: asyncio.Queue[Arrived]) -> None:
    loop = asyncio.get_running_loop()
    data: bytes | None = b"-"
    while data:
        try:
            data = await reader.read(PIECE_BYTE_COUNT)
        except OSError:
            data = None
        await queue.put(Arrived(loop.time(), data))


def _close(writer: asyncio.StreamWriter, *, reset: bool) -> None:
    """Closes a connection, by a RST if so asked."""
    end = writer.get_extra_info("socket")
    if reset and end is not None:
        with suppress(OSError):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()
    else:
        writer.close()
