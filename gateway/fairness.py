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
        waiting = deque(fetches)
        helper_count = min(self._request_count, len(waiting)) - 1
        lanes = [_follow(waiting), *(self._follow_shared(waiting) for _ in range(helper_count))]
        tasks = [asyncio.create_task(lane) for lane in lanes]
        async with owning(*tasks):
            await asyncio.gather(*tasks)

    async def _follow_shared(self, waiting: deque[Callable[[], Awaitable[None]]]) -> None:
        while waiting:
            async with self._shared:
                if waiting:
                    await waiting.popleft()()


async def _follow(waiting: deque[Callable[[], Awaitable[None]]]) -> None:
    while waiting:
        await waiting.popleft()()
