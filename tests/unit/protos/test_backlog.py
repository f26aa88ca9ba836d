"""The backlog in seconds, by a clock that is moved by hand."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protos.errors import InvalidArgumentError, OverloadedError
from protos.process.backlog import (
    MAX_SECONDS,
    MIN_RETRY_SECONDS,
    Backlog,
    Job,
    checked_bound,
    refuse_wait,
)


@dataclass
class HandClock:
    now: float = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
def backlog(clock: HandClock) -> Backlog:
    return Backlog(clock)


def enter(backlog: Backlog, unit_count: float, times: int = 1) -> list[Job]:
    jobs = [backlog.job() for _ in range(times)]
    for job in jobs:
        job.enter(unit_count)
    return jobs


def serve(backlog: Backlog, clock: HandClock, unit_count: float, pace: float, times: int) -> None:
    """Has jobs done one after the other, at a pace in units per second, with one always waiting."""
    (waiting,) = enter(backlog, unit_count)
    for _ in range(times):
        (job,) = enter(backlog, unit_count)
        clock.now += unit_count / pace
        job.finish(unit_count)
        job.leave()
    waiting.leave()


def test_the_seconds_are_what_waits_over_the_pace(backlog: Backlog, clock: HandClock) -> None:
    serve(backlog, clock, 10, pace=5, times=4)
    assert backlog.seconds() == 0
    jobs = enter(backlog, 10, 3)
    assert backlog.seconds() == pytest.approx(30 / 5, rel=0.1)
    jobs[0].finish(10)
    assert backlog.waiting_count == 20


def test_nobody_is_said_to_wait_until_the_pace_is_known(backlog: Backlog, clock: HandClock) -> None:
    jobs = enter(backlog, 7, 50)
    clock.now += 60
    assert backlog.seconds() == 0
    jobs[0].finish(7)
    assert backlog.seconds() > 60


def test_a_job_alone_says_nothing_of_the_pace(backlog: Backlog, clock: HandClock) -> None:
    (slow,) = enter(backlog, 1)
    clock.now += 1000
    slow.finish(1)
    slow.leave()
    enter(backlog, 1, 20)
    assert backlog.seconds() == 0


def test_a_job_alone_that_is_faster_than_what_is_known_says_so(
    backlog: Backlog, clock: HandClock
) -> None:
    serve(backlog, clock, 1, pace=0.1, times=100)
    waits = []
    for _ in range(600):
        (job,) = enter(backlog, 1)
        waits.append(backlog.seconds())
        clock.now += 0.1
        job.finish(1)
        job.leave()
    assert waits[0] == pytest.approx(10)
    assert waits == sorted(waits, reverse=True)
    assert waits[-1] < 1


def test_idle_time_changes_nothing(backlog: Backlog, clock: HandClock) -> None:
    serve(backlog, clock, 1, pace=4, times=40)
    clock.now += 86_400
    enter(backlog, 1, 8)
    assert backlog.seconds() == pytest.approx(8 / 4, rel=0.01)


def test_the_recent_past_counts_most(backlog: Backlog, clock: HandClock) -> None:
    serve(backlog, clock, 1, pace=100, times=6000)
    serve(backlog, clock, 1, pace=2, times=180)
    enter(backlog, 1, 10)
    assert backlog.seconds() == pytest.approx(10 / 2, rel=0.9)
    assert backlog.seconds() > 1


def test_a_service_that_stands_still_is_said_to_take_longer_and_longer(
    backlog: Backlog, clock: HandClock
) -> None:
    serve(backlog, clock, 1, pace=10, times=100)
    jobs = enter(backlog, 1, 5)
    start = backlog.seconds()
    assert start == pytest.approx(5 / 10)
    for minutes in range(1, 7):  # after 10 s with 100 units, of which the last count most
        clock.now += 60
        assert backlog.seconds() == pytest.approx(start + 5 * 60 * minutes / 100, rel=0.3)
    clock.now += 1e6
    assert backlog.seconds() == MAX_SECONDS
    for job in jobs:  # all have gone: the next ones try it anew
        job.leave()
    assert backlog.seconds() == 0


@pytest.mark.parametrize("seconds", [20.0, 600.0, 1e5])
def test_a_stall_that_is_over_counts_for_little(
    backlog: Backlog, clock: HandClock, seconds: float
) -> None:
    serve(backlog, clock, 1, pace=10, times=300)
    jobs = enter(backlog, 1, 5)
    clock.now += seconds
    jobs[0].finish(1)
    assert backlog.seconds() < 6 * 4 / 10
    serve(backlog, clock, 1, pace=10, times=300)
    assert 4 / 10 <= backlog.seconds() < 2 * 4 / 10


def test_where_a_unit_takes_minutes_one_alone_does_not_tell_the_pace(
    backlog: Backlog, clock: HandClock
) -> None:
    for _ in range(20):
        serve(backlog, clock, 1, pace=1 / 120, times=1)
        serve(backlog, clock, 1, pace=1 / 360, times=1)
    enter(backlog, 1)
    assert backlog.seconds() == pytest.approx(240, rel=0.1)


def test_a_job_that_is_done_leaves(backlog: Backlog, clock: HandClock) -> None:
    """What it does afterwards shows nothing of the pace of those that are here."""
    serve(backlog, clock, 1, pace=10, times=100)
    done, alone = enter(backlog, 1, 2)
    clock.now += 0.1
    done.finish(1)
    clock.now += 1000
    assert backlog.seconds() == pytest.approx(1 / 10)
    alone.finish(1)
    done.enter(3)
    assert backlog.waiting_count == 3


def test_who_hardly_waited_beside_others_shows_little(backlog: Backlog, clock: HandClock) -> None:
    serve(backlog, clock, 1, pace=10, times=20)
    (slow,) = enter(backlog, 13)
    clock.now += 5
    (late,) = enter(backlog, 1)
    clock.now += 0.1
    slow.finish(13)
    late.leave()
    enter(backlog, 1, 10)
    assert backlog.seconds() == pytest.approx(10 / 10, rel=0.1)


def test_cancelled_jobs_leave_and_do_not_count_as_done(backlog: Backlog, clock: HandClock) -> None:
    serve(backlog, clock, 1, pace=10, times=100)
    before = enter(backlog, 1, 10), backlog.seconds()
    for job in before[0][:5]:
        job.leave()
        job.leave()
    assert backlog.waiting_count == 5
    assert backlog.seconds() == pytest.approx(before[1] / 2)


def test_what_is_not_measured_counts_as_a_typical_job(backlog: Backlog) -> None:
    for _ in range(60):
        with backlog.job() as job:
            job.enter()
            job.measure(13)
    with backlog.job() as job:
        job.enter()
        assert backlog.waiting_count == pytest.approx(13, rel=0.01)
        job.measure(2)
        assert backlog.waiting_count == 2
    assert backlog.waiting_count == 0


def test_a_job_enters_once_and_may_come_again(backlog: Backlog) -> None:
    with backlog.job() as job:
        assert backlog.waiting_count == 0
        job.enter(3)
        job.enter(3)
        assert backlog.waiting_count == 3
        job.leave()
        assert backlog.waiting_count == 0
        job.enter(3)
        assert backlog.waiting_count == 3
    assert backlog.waiting_count == 0


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["enter", "measure", "finish", "leave", "pass"]),
            st.integers(0, 7),
            st.one_of(st.floats(0, 1e4), st.floats(0, 1e9)),
        ),
        max_size=60,
    )
)
def test_the_seconds_are_never_negative_nor_infinite(
    steps: list[tuple[str, int, float]],
) -> None:
    clock = HandClock()
    backlog = Backlog(clock)
    jobs = [backlog.job() for _ in range(8)]
    present: set[int] = set()
    for what, index, number in steps:
        job = jobs[index]
        if what == "pass":
            clock.now += number
        elif what == "enter":
            job.enter(number)
            present.add(index)
        elif what == "leave":
            job.leave()
            present.discard(index)
        elif index in present:
            (job.measure if what == "measure" else job.finish)(number)
        seconds = backlog.seconds()
        assert backlog.waiting_count >= 0
        assert math.isfinite(seconds)
        assert 0 <= seconds <= MAX_SECONDS
        if not present:
            assert seconds == backlog.waiting_count == 0


def test_a_wait_within_the_bound_is_allowed() -> None:
    refuse_wait(5.0, None)
    refuse_wait(5.0, 5.0)
    refuse_wait(0.0, 0.0)


@pytest.mark.parametrize(
    ("seconds", "bound", "retry_after"), [(7.5, 5.0, 2.5), (5.01, 5.0, MIN_RETRY_SECONDS)]
)
def test_a_longer_one_is_refused_and_told_when_to_come_back(
    seconds: float, bound: float, retry_after: float
) -> None:
    with pytest.raises(OverloadedError, match="5") as caught:
        refuse_wait(seconds, bound)
    assert caught.value.retry_after == pytest.approx(retry_after)
    assert not caught.value.field


@pytest.mark.parametrize("seconds", [-0.001, math.nan, -math.inf])
def test_a_bound_that_is_no_time_is_refused_by_name(seconds: float) -> None:
    with pytest.raises(InvalidArgumentError, match="must be at least 0") as caught:
        checked_bound(seconds)
    assert caught.value.field == "max_queue_seconds"


@pytest.mark.parametrize("seconds", [0.0, 1.5, math.inf])
def test_any_other_is_taken(seconds: float) -> None:
    assert checked_bound(seconds) == seconds
