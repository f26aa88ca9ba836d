"""gRPC's health service for a server that serves from the start until it drains."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

Context = grpc.aio.ServicerContext[Any, Any]
Response = health_pb2.HealthCheckResponse


class HealthServicer(health_pb2_grpc.HealthServicer):  # type: ignore[misc] # it has no types
    """SERVING for the names it knows, then NOT_SERVING for good.

    gRPC's own servicer does not tell a watcher of a change once another watcher has left, and its
    watches never end.
    """

    def __init__(self, names: Collection[str]) -> None:
        self._names = names
        self._draining = asyncio.Event()
        self._over = asyncio.Event()

    async def Check(self, request: health_pb2.HealthCheckRequest, context: Context) -> Any:
        """Tells the status of a service; NOT_FOUND for a name it does not know."""
        if request.service not in self._names:
            await context.abort(grpc.StatusCode.NOT_FOUND, "there is no such service here")
        return Response(status=self._status)

    async def Watch(
        self, request: health_pb2.HealthCheckRequest, context: Context
    ) -> AsyncIterator[Any]:
        """Tells the status of a service and each change of it, until `end_watches`."""
        if request.service in self._names:
            told = self._status
            yield Response(status=told)
            if told == Response.SERVING:
                await self._draining.wait()
                yield Response(status=self._status)
        else:
            yield Response(status=Response.SERVICE_UNKNOWN)
        await self._over.wait()

    def drain(self) -> None:
        """Makes every service NOT_SERVING."""
        self._draining.set()

    def end_watches(self) -> None:
        """Ends the calls of those who watch: they never hang up by themselves."""
        self._over.set()

    @property
    def _status(self) -> int:
        return int(Response.NOT_SERVING if self._draining.is_set() else Response.SERVING)
