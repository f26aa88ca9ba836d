"""A stream of server-sent events, and the comments in it that tell proxies that it lives."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from aiohttp import web

from gateway.tasks import owning

HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache",
    # Asks nginx not to collect the stream.
    "X-Accel-Buffering": "no",
}
# Clients skip lines that begin with a colon.
COMMENT = b": keep-alive\n\n"


class EventStream:
    """The answer to a request, as events. It begins with the first byte that is sent.

    Attributes:
        response: the answer; prepared once the stream has begun.
    """

    def __init__(self, request: web.Request, keep_alive_seconds: float) -> None:
        """`keep_alive_seconds` is the longest silence; 0: however long."""
        self.response = web.StreamResponse(headers=HEADERS)
        self._request = request
        self._keep_alive_seconds = keep_alive_seconds
        self._loop = asyncio.get_running_loop()
        self._written_at = self._loop.time()

    @property
    def has_begun(self) -> bool:
        """Whether the client has been told that the request succeeds."""
        return self.response.prepared

    async def write(self, data: bytes) -> None:
        """Sends whole events, and the head of the answer before the first.

        Raises:
            ConnectionError: the client is gone.
        """
        self._written_at = self._loop.time()
        if not self.has_begun:
            # Two tasks may come here, but not both: nothing in it waits.
            await self.response.prepare(self._request)
        await self.response.write(data)

    @asynccontextmanager
    async def kept_alive(self) -> AsyncIterator[None]:
        """Within the block, sends a comment whenever nothing was sent for too long.

        This also begins the stream.
        """
        if not self._keep_alive_seconds:
            yield
            return
        async with owning(asyncio.create_task(self._keep_alive())):
            yield

    async def _keep_alive(self) -> None:
        with suppress(ConnectionError):  # the client is gone: aiohttp ends the request
            while True:
                silence = self._loop.time() - self._written_at
                if silence >= self._keep_alive_seconds:
                    await self.write(COMMENT)
                else:
                    await asyncio.sleep(self._keep_alive_seconds - silence)
