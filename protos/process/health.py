"""gRPC's health service for a server that serves from the start until it drains."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import suppress
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

Context = grpc.aio.ServicerContext[Any, Any]
Response = health_pb2.HealthCheckResponse
POLL_SECONDS = 0.5


class HealthServicer(health_pb2_grpc.HealthServicer):  # type: ignore[misc] # it has no types
    """SERVING for the names it knows, as long as it is ready, then NOT_SERVING for good.

    gRPC's own servicer does not tell a watcher of a change once another watcher has left, and its
    watches never end.
    """

    def __init__(self, names: Collection[str], is_ready: Callable[[], bool]) -> None:
        self._names = names
        self._is_ready = is_ready
        self._draining = asyncio.Event()
        self._over = asyncio.Event()
        self._watcher_count = 0

    async def Check(self, request: health_pb2.HealthCheckRequest, context: Context) -> Any:
        """Tells the status of a service; NOT_FOUND for a name it does not know."""
        if request.service not in self._names:
            await context.abort(grpc.StatusCode.NOT_FOUND, "there is no such service here")
        return Response(status=self._status)

    async def Watch(
        self, request: health_pb2.HealthCheckRequest, context: Context
    ) -> AsyncIterator[Any]:
        """Tells the status of a service and each change of it, until `end_watches`."""
        self._watcher_count += 1
        try:
            if request.service in self._names:
                async for status in self._changes():
                    yield Response(status=status)
            else:
                yield Response(status=Response.SERVICE_UNKNOWN)
            await self._over.wait()
        finally:
            self._watcher_count -= 1

    @property
    def is_watched(self) -> bool:
        """Whether anybody would be told of a change."""
        return self._watcher_count > 0

    def drain(self) -> None:
        """Makes every service NOT_SERVING."""
        self._draining.set()

    def end_watches(self) -> None:
        """Ends the calls of those who watch: they never hang up by themselves."""
        self._over.set()

    async def _changes(self) -> AsyncIterator[int]:
        told = None
        while not self._draining.is_set():
            if told != self._status:
                yield (told := self._status)
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._draining.wait(), POLL_SECONDS)
        if told != self._status:
            yield self._status

    @property
    def _status(self) -> int:
        serves = self._is_ready() and not self._draining.is_set()
        return int(Response.SERVING if serves else Response.NOT_SERVING)
