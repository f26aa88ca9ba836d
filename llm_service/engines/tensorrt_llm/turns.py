"""Turns: which requests the executor has, so that none of them takes all its places."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from llm_service.engines.admission import seconds_left, time_over
from llm_service.engines.base import Account, Request


@dataclass(eq=False)
class _Waiter:
    request: Request
    arrival: int
    turn: asyncio.Future[None]


class Turns:
    """Hands the executor's places out: by priority, then to whoever holds the fewest, then by age.

    The executor runs what it has in the order in which that came, whosever it is. So it is given no
    more than it can run, and what waits waits here. A place that is held comes back when its
    sequence ends: the executor cannot put one aside. All is the event loop's.

    Attributes:
        free_count: places that nobody holds; 0 while anybody waits.
    """

    def __init__(self, place_count: int) -> None:
        self.free_count = place_count
        self._held_counts: Counter[Account] = Counter()
        self._waiters: list[_Waiter] = []
        self._arrival_count = 0

    @asynccontextmanager
    async def turn(self, request: Request) -> AsyncIterator[None]:
        """Waits for a place, and holds it.

        Raises:
            DeadlineError: the request's time is over before it has one.
        """
        self._arrival_count += 1
        future = asyncio.get_running_loop().create_future()
        waiter = _Waiter(request, self._arrival_count, future)
        self._waiters.append(waiter)
        self._hand_out()
        try:
            await _in_time(waiter.turn, request.deadline)
            yield
        finally:
            self._leave(waiter)

    def _hand_out(self) -> None:
        while self.free_count and self._waiters:
            waiter = min(self._waiters, key=self._rank)
            self._waiters.remove(waiter)
            self.free_count -= 1
            self._held_counts[waiter.request.account] += 1
            if not waiter.turn.done():
                waiter.turn.set_result(None)

    def _rank(self, waiter: _Waiter) -> tuple[int, int, int]:
        request = waiter.request
        return -request.priority, self._held_counts[request.account], waiter.arrival

    def _leave(self, waiter: _Waiter) -> None:
        if waiter in self._waiters:
            self._waiters.remove(waiter)
            return
        account = waiter.request.account
        self.free_count += 1
        self._held_counts[account] -= 1
        if not self._held_counts[account]:
            del self._held_counts[account]
        self._hand_out()


async def _in_time(turn: asyncio.Future[None], deadline: float | None) -> None:
    try:
        await asyncio.wait_for(turn, seconds_left(deadline))
    except asyncio.TimeoutError:
        raise time_over() from None
