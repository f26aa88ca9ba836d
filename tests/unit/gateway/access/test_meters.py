"""A rate's bucket, by a clock that is moved by hand."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.access.meters import MINUTE, Meter, Taking


class Clock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.nanoseconds = 10**15

    def __call__(self) -> int:
        return self.nanoseconds


def test_a_minutes_limit_may_be_taken_at_once_and_comes_back_evenly() -> None:
    clock = Clock()
    meter = Meter(60, clock)
    meter.take(60)
    assert (meter.room, meter.nanoseconds_until(1)) == (0, 10**9)
    clock.nanoseconds += 10**9 - 1
    assert (meter.room, meter.nanoseconds_until(1)) == (0, 1)
    clock.nanoseconds += 1
    assert (meter.room, meter.nanoseconds_until(1), meter.nanoseconds_until(60)) == (
        1,
        0,
        59 * 10**9,
    )
    assert meter.nanoseconds_to_empty == 59 * 10**9
    clock.nanoseconds += 3600 * 10**9
    assert (meter.room, meter.nanoseconds_to_empty) == (60, 0)


def test_more_than_was_taken_has_to_drain_before_anything_is_taken_again() -> None:
    clock = Clock()
    meter = Meter(100, clock)
    meter.take(40).settle(250)
    assert meter.room == 0
    clock.nanoseconds += 3 * MINUTE // 2
    assert (meter.room, meter.nanoseconds_until(1)) == (0, MINUTE // 100)
    clock.nanoseconds += MINUTE
    assert meter.room == 100


def test_what_was_used_counts_against_a_new_limit_as_far_as_that_goes() -> None:
    clock = Clock()
    meter = Meter(100, clock)
    meter.take(30)
    meter.change_limit(1000)
    assert meter.room == 970
    meter.change_limit(10)
    assert (meter.room, meter.nanoseconds_to_empty) == (0, MINUTE)
    meter.change_limit(0)
    assert (meter.room, meter.nanoseconds_to_empty) == (0, 0)


@given(
    limit=st.integers(1, 10**6),
    steps=st.lists(st.tuples(st.integers(0, 2 * MINUTE), st.integers(1, 10**6)), max_size=60),
)
def test_no_window_grants_more_than_the_limit_and_what_comes_back_in_it(
    limit: int, steps: list[tuple[int, int]]
) -> None:
    clock = Clock()
    meter = Meter(limit, clock)
    granted: list[tuple[int, int]] = []
    for pause, count in steps:
        clock.nanoseconds += pause
        if count <= limit and not meter.nanoseconds_until(count):
            meter.take(count)
            granted.append((clock.nanoseconds, count))
    for first, (begin, _) in enumerate(granted):
        total = 0
        for moment, count in granted[first:]:
            total += count
            assert total * MINUTE <= limit * (MINUTE + moment - begin)


@given(
    limit=st.integers(1, 10**6),
    used=st.integers(0, 10**7),
    count=st.integers(1, 10**6),
    moved=st.integers(0, MINUTE),
)
def test_the_time_that_is_told_is_the_shortest(
    limit: int, used: int, count: int, moved: int
) -> None:
    clock = Clock()
    meter = Meter(limit, clock)
    meter.take(used)
    clock.nanoseconds += moved
    count = min(count, limit)
    if wait := meter.nanoseconds_until(count):
        clock.nanoseconds += wait - 1
        assert meter.nanoseconds_until(count) == 1
        assert meter.room < count
        clock.nanoseconds += 1
    assert meter.nanoseconds_until(count) == 0
    assert meter.room >= count


@given(st.lists(st.tuples(st.integers(0, 1000), st.integers(0, 3000)), max_size=40), st.data())
def test_settled_in_any_order_what_was_used_is_what_counts(
    spendings: list[tuple[int, int]], data: Any
) -> None:
    meter = Meter(10**6, Clock())  # which stands still: nothing drains
    takings = [(meter.take(reserved), used) for reserved, used in spendings]
    for taking, used in data.draw(st.permutations(takings)):
        taking.settle(used)
    assert meter.room == 10**6 - sum(used for _, used in spendings)


def test_what_has_drained_is_not_given_back_twice() -> None:
    clock = Clock()
    meter = Meter(60, clock)
    taking = meter.take(10)
    clock.nanoseconds += MINUTE
    taking.settle(0)
    assert meter.room == 60
    meter.take(60)
    assert meter.nanoseconds_until(1) == pytest.approx(10**9)


def test_what_has_drained_is_not_given_back_from_what_others_took() -> None:
    """Else who lets long requests end all at once would get many minutes' limits at once."""
    clock = Clock()
    meter = Meter(60, clock)
    takings = []
    for _ in range(5):
        takings.append(meter.take(60))
        clock.nanoseconds += MINUTE
    meter.take(60)
    for taking in takings:
        taking.settle(0)
    assert meter.room == 0


@given(
    limit=st.integers(1, 1000),
    steps=st.lists(
        st.tuples(st.integers(0, MINUTE), st.integers(1, 1000), st.integers(0, 9)), max_size=40
    ),
    data=st.data(),
)
def test_no_window_uses_more_than_the_limit_and_what_comes_back_in_it(
    limit: int, steps: list[tuple[int, int, int]], data: Any
) -> None:
    """Whenever reservations are settled: by what was used of them in the end."""
    clock = Clock()
    meter = Meter(limit, clock)
    used: list[tuple[int, int]] = []
    open_takings: list[tuple[int, Taking, int]] = []
    for pause, count, choice in steps:
        clock.nanoseconds += pause
        if open_takings and choice < 5:
            moment, taking, reserved = open_takings.pop(choice % len(open_takings))
            taking.settle(spent := data.draw(st.integers(0, reserved)))
            used.append((moment, spent))
        elif count <= limit and not meter.nanoseconds_until(count):
            open_takings.append((clock.nanoseconds, meter.take(count), count))
    used.sort()
    for first, (begin, _) in enumerate(used):
        total = 0
        for moment, spent in used[first:]:
            total += spent
            assert total * MINUTE <= limit * (MINUTE + moment - begin)
