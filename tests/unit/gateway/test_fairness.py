"""Lanes of fetches: shared while they are free, and one that nobody can take."""

from __future__ import annotations

import asyncio
from functools import partial

import pytest

from gateway.fairness import FetchLanes

SECONDS = 5.0


async def test_fetches_go_on_beside_those_that_wait() -> None:
    lanes = FetchLanes(shared_count=2, request_count=3)
    begun: list[int] = []

    async def wait_for_ever(index: int) -> None:
        begun.append(index)
        await asyncio.Event().wait()

    stuck = asyncio.create_task(lanes.run(partial(wait_for_ever, index) for index in range(9)))
    ended: list[int] = []

    async def end(index: int) -> None:
        await asyncio.sleep(0)
        ended.append(index)

    for _ in range(2):
        await asyncio.wait_for(lanes.run(partial(end, index) for index in range(9)), SECONDS)
    assert begun == [0, 1, 2]
    assert ended == [*range(9)] * 2
    stuck.cancel()
    await asyncio.gather(stuck, return_exceptions=True)
    await asyncio.wait_for(lanes.run([partial(end, 9)]), SECONDS)


async def test_fetches_run_at_once_in_the_lanes_of_a_request() -> None:
    lanes = FetchLanes(shared_count=9, request_count=3)
    barrier: list[asyncio.Event] = [asyncio.Event() for _ in range(3)]

    async def meet(index: int) -> None:
        barrier[index].set()
        for event in barrier:
            await event.wait()

    await asyncio.wait_for(lanes.run(partial(meet, index) for index in range(3)), SECONDS)


@pytest.mark.parametrize("index", [0, 1, 8])
async def test_the_first_failure_ends_all(index: int) -> None:
    lanes = FetchLanes(shared_count=1, request_count=2)

    async def fetch(number: int) -> None:
        if number == index:
            raise ZeroDivisionError
        if number > index:
            await asyncio.Event().wait()

    for _ in range(2):  # the shared lane is free again
        with pytest.raises(ZeroDivisionError):
            await asyncio.wait_for(lanes.run(partial(fetch, i) for i in range(9)), SECONDS)


async def test_there_may_be_nothing_to_do() -> None:
    await asyncio.wait_for(FetchLanes(1, 1).run([]), SECONDS)
