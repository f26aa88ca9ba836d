"""Each toxic does to a real connection what its name says, and counts it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from gateway.local.ports import LOOPBACK
from tests.chaos import proxy
from tests.chaos.proxy import Direction, Proxy, Toxic

BODY = bytes(range(256)) * 1024


class Echo:
    """A server that sends back what comes, and ends when the client has ended.

    Attributes:
        ended: set once a client has ended.
    """

    def __init__(self) -> None:
        self.ended = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
            self.ended.set()
        except OSError:
            pass
        writer.close()


@asynccontextmanager
async def proxied() -> AsyncIterator[tuple[Proxy, Echo]]:
    echo = Echo()
    server = await asyncio.start_server(echo.serve, LOOPBACK, 0)
    async with server, Proxy(server.sockets[0].getsockname()[1], seed=1).running() as running:
        yield running, echo


async def exchange(port: int, body: bytes = BODY, *, end: bool = True) -> bytes:
    """Sends a body, and returns all that comes back until the connection ends."""
    reader, writer = await asyncio.open_connection(LOOPBACK, port)
    try:
        writer.write(body)
        if end:
            writer.write_eof()
        return await reader.read(-1)
    finally:
        writer.close()


async def seconds_of_an_exchange(toxic: Toxic, direction: Direction = "downstream") -> float:
    async with proxied() as (running, _), running.poisoned(toxic, direction):
        start = time.monotonic()
        assert await exchange(running.port) == BODY
    assert toxic.strike_count
    return time.monotonic() - start


async def test_without_toxics_bytes_pass_both_ways() -> None:
    async with proxied() as (running, _):
        assert await exchange(running.port) == BODY
        assert running.connection_count == 1
        assert running.byte_counts == {"upstream": len(BODY), "downstream": len(BODY)}


async def test_latency_delays_each_piece_but_not_the_rate() -> None:
    """Many pieces are on their way at once, as on a long line: the delay does not add up."""
    seconds = await seconds_of_an_exchange(proxy.Latency(0.3, jitter_seconds=0.05))
    assert 0.25 <= seconds < 0.25 * len(BODY) / proxy.PIECE_BYTE_COUNT


async def test_bandwidth_bounds_the_rate() -> None:
    assert await seconds_of_an_exchange(proxy.Bandwidth(len(BODY) / 0.4), "upstream") >= 0.35


async def test_slicer_makes_crumbs_and_loses_none() -> None:
    assert await seconds_of_an_exchange(proxy.Slicer(4096, 0.002)) >= 0.05


async def test_slow_close_holds_the_end_up() -> None:
    assert await seconds_of_an_exchange(proxy.SlowClose(0.3)) >= 0.3


async def test_corrupt_changes_single_bits_by_seed() -> None:
    async def corrupted() -> bytes:
        toxic = proxy.Corrupt(share=1.0)
        async with proxied() as (running, _), running.poisoned(toxic, "upstream"):
            answer = await exchange(running.port, b"\0" * 1000)
            assert toxic.strike_count == 1
            return answer

    first = await corrupted()
    assert sum(byte.bit_count() for byte in first) == 1
    assert await corrupted() == first


async def test_limit_data_closes_after_so_many_bytes() -> None:
    toxic = proxy.LimitData(100)
    async with proxied() as (running, _), running.poisoned(toxic, "downstream"):
        assert await exchange(running.port, b"x" * 100, end=True) == b"x" * 100
        assert await exchange(running.port, b"x" * 100, end=False) == b""
    assert toxic.strike_count == 1


async def test_timeout_swallows_and_then_closes() -> None:
    toxic = proxy.Timeout(0.2)
    async with proxied() as (running, _), running.poisoned(toxic, "upstream"):
        start = time.monotonic()
        assert await exchange(running.port, end=False) == b""
        assert time.monotonic() - start >= 0.2
    assert toxic.strike_count == 1


async def test_reset_peer_is_a_rst() -> None:
    toxic = proxy.ResetPeer()
    async with proxied() as (running, _), running.poisoned(toxic, "downstream"):
        with pytest.raises(ConnectionResetError):
            await exchange(running.port, end=False)
    assert toxic.strike_count == 1


async def test_half_close_ends_one_direction() -> None:
    """The server sees the end, though the client has not ended, and may still answer."""
    toxic = proxy.HalfClose()
    async with proxied() as (running, echo), running.poisoned(toxic, "upstream"):
        assert await exchange(running.port, end=False) == b""
        await asyncio.wait_for(echo.ended.wait(), 5)
    assert toxic.strike_count == 1


async def test_toxics_strike_living_connections_and_leave_them() -> None:
    async with proxied() as (running, _):
        reader, writer = await asyncio.open_connection(LOOPBACK, running.port)
        async with running.poisoned(proxy.Corrupt(share=1.0), "upstream"):
            writer.write(b"\0" * 8)
            assert await reader.readexactly(8) != b"\0" * 8
        writer.write(b"\0" * 8)
        assert await reader.readexactly(8) == b"\0" * 8
        writer.close()


async def test_a_server_that_is_gone_is_a_broken_connection() -> None:
    async with Proxy(1, seed=1).running() as running:
        with pytest.raises(ConnectionResetError):
            await exchange(running.port, b"", end=False)
