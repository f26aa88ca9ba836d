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


async def test_draining_ends_when_its_time_is_over() -> None:
    traffic = Traffic(max_request_count=1)
    with traffic.arrival():
        await traffic.drain(0.01)
    assert traffic.draining
