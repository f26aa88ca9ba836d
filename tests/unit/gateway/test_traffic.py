"""Admission of requests, and drain."""

from __future__ import annotations

import asyncio

import pytest

from gateway.traffic import Traffic
from protos.errors import OverloadedError, UnavailableError


async def test_a_request_too_many_is_refused() -> None:
    traffic = Traffic(max_request_count=1)
    with traffic.place():
        for admission in (traffic.arrival(), traffic.place()):
            with pytest.raises(OverloadedError, match="the limit is 1"):
                admission.__enter__()
    with traffic.place():
        assert not traffic.draining


async def test_an_arrival_takes_no_place() -> None:
    traffic = Traffic(max_request_count=1)
    with traffic.arrival(), traffic.arrival(), traffic.place():
        assert not traffic.draining


async def test_draining_waits_for_requests_and_refuses_new_ones() -> None:
    traffic = Traffic(max_request_count=2)
    with traffic.arrival():
        drain = asyncio.create_task(traffic.drain(60))
        await asyncio.sleep(0)  # the task has its first turn
        assert traffic.draining
        with pytest.raises(UnavailableError, match="stopping"):
            traffic.arrival().__enter__()
        assert not drain.done()
    await drain


async def test_what_runs_at_the_end_of_a_drain_is_cut_short() -> None:
    traffic = Traffic(max_request_count=1)

    async def request() -> None:
        with traffic.arrival():
            await asyncio.Event().wait()

    task = asyncio.create_task(request())
    await asyncio.sleep(0)  # the task has its first turn
    await traffic.drain(0.01)
    with pytest.raises(UnavailableError, match="before the end of the answer"):
        await task


async def test_a_request_may_say_that_it_is_cut_short() -> None:
    traffic = Traffic(max_request_count=1)
    said = []

    async def request() -> None:
        with traffic.arrival():
            try:
                with traffic.cut_short():
                    await asyncio.Event().wait()
            except UnavailableError as error:
                await asyncio.sleep(0.01)
                said.append(error.message)

    task = asyncio.create_task(request())
    await asyncio.sleep(0)
    await traffic.drain(0.01)
    await task
    assert said == ["the gateway has stopped before the end of the answer"]


async def test_a_request_that_somebody_else_cancels_is_not_called_cut_short() -> None:
    traffic = Traffic(max_request_count=1)

    async def request() -> None:
        with traffic.arrival():
            await asyncio.Event().wait()

    task = asyncio.create_task(request())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
