"""The waiting line: order, memory, and workers that large images may not have."""

from __future__ import annotations

import asyncio

from vision_service.decoding.cost import Cost
from vision_service.decoding.headers import Header
from vision_service.decoding.waiting import Job, WaitingLine


def job(byte_count: int = 1, *, is_large: bool = False) -> Job:
    done = asyncio.get_running_loop().create_future()
    return Job(b"", Header("PNG", 2, 2), 1, Cost(byte_count, 1.0, is_large), done)


async def taken(line: WaitingLine) -> Job | None:
    """Returns the job that a worker is given at once."""
    taking = asyncio.create_task(line.take())
    await asyncio.wait([taking], timeout=0.01)
    if taking.done():
        return taking.result()
    taking.cancel()
    await asyncio.wait([taking])
    return None


async def test_first_come_first_served() -> None:
    line, jobs = WaitingLine(10, 1), [job(), job(), job()]
    for one in jobs:
        line.put(one)
    line.remove(jobs[1])
    assert [await taken(line) for _ in range(3)] == [jobs[0], jobs[2], None]


async def test_who_does_not_fit_makes_those_behind_it_wait() -> None:
    line, jobs = WaitingLine(10, 1), [job(6), job(5), job(1)]
    for one in jobs:
        line.put(one)
    assert [await taken(line), await taken(line)] == [jobs[0], None]
    line.give_back(jobs[0])
    assert [await taken(line), await taken(line)] == [jobs[1], jobs[2]]


async def test_large_images_leave_workers_to_others() -> None:
    line = WaitingLine(10, 1)
    first, second, small = job(is_large=True), job(is_large=True), job()
    for one in (first, second, small):
        line.put(one)
    assert [await taken(line) for _ in range(3)] == [first, small, None]
    line.give_back(first)
    assert await taken(line) is second


async def test_a_worker_that_waits_is_served_when_a_job_comes() -> None:
    line, one = WaitingLine(10, 1), job()
    taking = asyncio.create_task(line.take())
    await asyncio.sleep(0)
    line.put(one)
    assert await taking is one


async def test_a_job_whose_worker_left_is_the_first_again() -> None:
    line, jobs = WaitingLine(10, 1), [job(6), job(6)]
    taking = asyncio.create_task(line.take())
    await asyncio.sleep(0)
    for one in jobs:
        line.put(one)
    taking.cancel()  # in the moment that it is given the job
    await asyncio.wait([taking])
    assert await taken(line) is jobs[0]
