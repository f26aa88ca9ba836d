"""A channel whose certificates may change: calls end where they began, new ones begin anew."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import structlog

from gateway.tasks import owning
from protos.errors import ServiceError
from protos.process.tls import TLSFileError
from protos.process.watched_files import watching

logger = structlog.get_logger()

Connect = Callable[[], Awaitable[grpc.aio.Channel]]
IsServed = Callable[[grpc.aio.Channel], Awaitable[None]]
# Until a service is asked again whether it takes a connection.
RETRY_SECONDS = 2.0


class RenewedChannel(grpc.aio.Channel):
    """Passes each call on to the latest channel: gRPC's have one set of certificates for ever.

    Attributes:
        latest: the channel that takes new calls.
        calls: those of the latest channel that have not ended.
    """

    def __init__(self, latest: grpc.aio.Channel) -> None:
        self.latest = latest
        self.calls: set[grpc.aio.Call] = set()

    def replace(self, successor: grpc.aio.Channel) -> Coroutine[Any, Any, None]:
        """Lets another channel take new calls; what is returned ends the former with its last."""
        former, calls = self.latest, self.calls
        self.latest, self.calls = successor, set()
        return _close(former, [*calls])

    def unary_unary(self, *args: Any, **options: Any) -> Any:
        return _Method(self, lambda channel: channel.unary_unary(*args, **options))

    def unary_stream(self, *args: Any, **options: Any) -> Any:
        return _Method(self, lambda channel: channel.unary_stream(*args, **options))

    def stream_unary(self, *args: Any, **options: Any) -> Any:
        return _Method(self, lambda channel: channel.stream_unary(*args, **options))

    def stream_stream(self, *args: Any, **options: Any) -> Any:
        return _Method(self, lambda channel: channel.stream_stream(*args, **options))

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        return self.latest.get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        await self.latest.wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        await self.latest.channel_ready()

    async def close(self, grace: float | None = None) -> None:
        await self.latest.close(grace)

    async def __aenter__(self) -> RenewedChannel:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


class _Method:
    """One method of a service, on whichever channel is the latest."""

    def __init__(
        self, channel: RenewedChannel, of: Callable[[grpc.aio.Channel], Callable[..., Any]]
    ) -> None:
        self._channel = channel
        self._of = of
        self._latest = channel.latest
        self._call = of(channel.latest)

    def __call__(self, *args: Any, **options: Any) -> Any:
        if self._latest is not self._channel.latest:
            self._latest = self._channel.latest
            self._call = self._of(self._latest)
        call, calls = self._call(*args, **options), self._channel.calls
        calls.add(call)
        call.add_done_callback(calls.discard)
        return call


async def _close(channel: grpc.aio.Channel, calls: Sequence[grpc.aio.Call]) -> None:
    """Closes a channel after its last calls; gRPC's own `close` waits for all only since 1.85."""
    for call in calls:
        await call.code()
    await channel.close()


@asynccontextmanager
async def open_renewed_channel(
    connect: Connect, is_served: IsServed, paths: Sequence[Path], poll_seconds: float
) -> AsyncIterator[RenewedChannel]:
    """Yields a channel that begins anew when files change.

    The new certificates get calls once a service has taken them; until then, and where they cannot
    be used, those from before stay in use.

    Args:
        connect: returns a channel with the certificates that the files hold now.
        is_served: asks over a channel whether a service serves; raises ServiceError if none does.
        paths: the files.
        poll_seconds: how often they are looked at.

    Raises:
        TLSFileError: they cannot be used from the start.
    """
    changed = asyncio.Event()
    async with (
        watching(paths, changed.set, poll_seconds),
        RenewedChannel(await connect()) as channel,
        owning(asyncio.create_task(_renew(channel, connect, is_served, changed))),
    ):
        yield channel


async def keep_connected(channel: grpc.aio.Channel) -> None:
    """Connects anew when the last connection has ended: the next call would have to wait for it."""
    while True:
        state = channel.get_state(try_to_connect=True)
        await channel.wait_for_state_change(state)


async def _renew(
    channel: RenewedChannel, connect: Connect, is_served: IsServed, changed: asyncio.Event
) -> None:
    closing: set[asyncio.Task[None]] = set()
    try:
        while True:
            async with owning(asyncio.create_task(keep_connected(channel.latest))):
                successor = await _successor(connect, is_served, changed)
            closing.add(ending := asyncio.create_task(channel.replace(successor)))
            ending.add_done_callback(closing.discard)
    finally:
        async with owning(*closing):
            pass


async def _successor(
    connect: Connect, is_served: IsServed, changed: asyncio.Event
) -> grpc.aio.Channel:
    """Returns a channel with new certificates that a service takes."""
    while True:
        await changed.wait()
        changed.clear()
        try:
            successor = await connect()
        except TLSFileError as error:
            logger.error("certificate_kept", error=str(error))
            continue
        if await _is_taken(successor, is_served, changed):
            return successor
        await successor.close()


async def _is_taken(channel: grpc.aio.Channel, is_served: IsServed, changed: asyncio.Event) -> bool:
    """Waits until a service takes a connection; False if the files have changed once more."""
    while not changed.is_set():
        try:
            await is_served(channel)
        except ServiceError as error:
            logger.warning("certificate_kept", error=f"with the new one {error.message}")
            await asyncio.sleep(RETRY_SECONDS)
        else:
            return True
    return False
