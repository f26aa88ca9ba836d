"""Fetches of many requests at once: each request goes on, whatever those of others wait for."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable

from gateway.tasks import owning


class FetchLanes:
    """Every request has one lane of its own, and several more while lanes that all share are free.

    So one that waits for silent servers holds up its own images alone.
    """

    def __init__(self, shared_count: int, request_count: int) -> None:
        """Takes how many lanes are shared, and how many a request may have, its own included."""
        self._shared = asyncio.Semaphore(shared_count)
        self._request_count = request_count

    async def run(self, fetches: Iterable[Callable[[], Awaitable[None]]]) -> None:
        """Runs the fetches of one request; the first that fails ends all."""
        work = _Work(fetches)
        helper_count = min(self._request_count, work.open_count) - 1
        lanes = [work.follow(), *(self._help(work) for _ in range(helper_count))]
        running = {asyncio.create_task(lane) for lane in lanes}
        async with owning(*running):
            while work.open_count:  # helpers that still wait for a lane are not needed then
                done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()

    async def _help(self, work: _Work) -> None:
        while work.waiting:
            async with self._shared:
                await work.go_on()


class _Work:
    """The fetches of one request: those that wait, and how many have not ended."""

    def __init__(self, fetches: Iterable[Callable[[], Awaitable[None]]]) -> None:
        self.waiting = deque(fetches)
        self.open_count = len(self.waiting)
        self._ended = asyncio.Event()

    async def follow(self) -> None:
        """Goes on until all have ended."""
        while self.waiting:
            await self.go_on()
        await self._ended.wait()

    async def go_on(self) -> None:
        """Runs the next fetch, if one waits."""
        if self.waiting:
            await self.waiting.popleft()()
            self.open_count -= 1
            if not self.open_count:
                self._ended.set()
