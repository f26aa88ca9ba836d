"""A service's backlog: how much work waits, and the seconds until a newcomer's turn."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from protos.errors import InvalidArgumentError, OverloadedError

# After so much busy time, what was done before counts a third (1 / e) of what is done now.
PACE_SECONDS = 30.0
# Nobody plans for longer; a service that stands still would say more and more.
MAX_SECONDS = 3600.0
MIN_RETRY_SECONDS = 0.1
# One job alone waits for nobody, and the service could do more beside it: the batches of one
# picture are half empty, and others would overtake a long prompt. So its pace counts only where it
# is better than what is known.
BUSY_JOB_COUNT = 2
# What is left of past work after hours without any: still more than none.
LEAST_COUNT = 1e-9


@dataclass(frozen=True)
class _Pace:
    """Units that were done, and the busy seconds for them, as of a moment of the clock."""

    unit_count: float
    seconds: float
    moment: float

    def at(self, moment: float) -> _Pace:
        """Returns it after a time in which nothing was done; the past counts less then."""
        share = math.exp(-max(0.0, moment - self.moment) / PACE_SECONDS)
        unit_count = max(self.unit_count * share, LEAST_COUNT) if self.unit_count else 0.0
        return _Pace(unit_count, self.seconds * share + PACE_SECONDS * (1 - share), moment)

    def betters(self, other: _Pace) -> bool:
        """Whether it is faster than another one, which is known."""
        return 0 < other.unit_count * self.seconds < self.unit_count * other.seconds


class Backlog:
    """Jobs that wait to be done, each of some units, and the pace at which units are done.

    The seconds until a newcomer's turn are the units that wait, over those that were done in a
    second of time in which the service was busy. Until anything was done in such a time the pace is
    unknown, and nobody is said to wait. Jobs come and go on one thread; the numbers may be read on
    any.

    Attributes:
        waiting_count: units of the jobs that are here, but for those that are done.
        typical_count: units of one job, by those so far; 1 until there was any.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        is_full: Callable[[], bool] | None = None,
    ) -> None:
        """Makes an empty one.

        Args:
            clock: tells seconds.
            is_full: whether the service can do no more than it does: the times that show its pace.
                None: while at least two jobs are here, or one alone is done faster than known.
        """
        self.waiting_count = 0.0
        self.typical_count = 1.0
        self._clock = clock
        self._is_full = is_full
        self._job_count = 0
        self._pace = _Pace(0.0, 0.0, clock())

    def job(self) -> Job:
        """Returns a job that is not here yet."""
        return Job(self)

    def seconds(self) -> float:
        """Returns the seconds until the turn of a job that came now; 0 to MAX_SECONDS."""
        waiting = self.waiting_count
        pace = self._pace_now()
        if waiting <= 0 or not pace.unit_count:
            return 0.0
        return min(MAX_SECONDS, waiting * pace.seconds / pace.unit_count)

    def _pace_now(self) -> _Pace:
        return self._pace.at(self._clock()) if self._is_busy() else self._pace

    def _is_busy(self) -> bool:
        if self._is_full is not None:
            return self._is_full()
        return self._job_count >= BUSY_JOB_COUNT

    def _add(self, job_count: int, unit_count: float) -> None:
        self._pace = replace(self._pace_now(), moment=self._clock())
        self._job_count += job_count
        # Without jobs nothing waits, whatever the sum of fractions says.
        waiting_count = max(0.0, self.waiting_count + unit_count)
        self.waiting_count = waiting_count if self._job_count else 0.0

    def _finish(self, unit_count: float) -> None:
        pace = self._pace.at(self._clock())
        pace = replace(pace, unit_count=pace.unit_count + unit_count)
        if self._is_busy() or (self._is_full is None and pace.betters(self._pace)):
            self._pace = pace
        self._add(0, -unit_count)

    def _learn(self, unit_count: float) -> None:
        self.typical_count += (unit_count - self.typical_count) / 8


class Job:
    """One job: here from `enter` to the end of the block, whatever ends it."""

    def __init__(self, backlog: Backlog) -> None:
        self._backlog = backlog
        self._is_here = False
        self._left = 0.0

    def __enter__(self) -> Job:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.leave()

    def enter(self, unit_count: float | None = None) -> None:
        """Has it wait, unless it does so; None: its units are not known yet."""
        if not self._is_here:
            self._is_here = True
            self._left = self._backlog.typical_count if unit_count is None else unit_count
            self._backlog._add(1, self._left)

    def measure(self, unit_count: float) -> None:
        """Tells how many units it has, none of which is done."""
        self._backlog._learn(unit_count)
        self._backlog._add(0, unit_count - self._left)
        self._left = unit_count

    def finish(self, unit_count: float) -> None:
        """Says that so many of its units are done."""
        unit_count = min(unit_count, self._left)
        self._left -= unit_count
        self._backlog._finish(unit_count)

    def leave(self) -> None:
        """Takes it out, with what is left of it."""
        if self._is_here:
            self._is_here = False
            self._backlog._add(-1, -self._left)
            self._left = 0.0


def checked_bound(seconds: float) -> float:
    """Returns a request's max_queue_seconds.

    Raises:
        InvalidArgumentError: it is negative, or no number.
    """
    if not seconds >= 0:
        raise InvalidArgumentError(
            f"the longest wait is {seconds:g} seconds; it must be at least 0",
            field="max_queue_seconds",
        )
    return seconds


def refuse_wait(seconds: float, max_seconds: float | None) -> None:
    """Refuses a request that would wait longer than it may; None: it may wait for any time.

    Raises:
        OverloadedError: with the time after which the wait is short enough.
    """
    if max_seconds is None or seconds <= max_seconds:
        return
    raise OverloadedError(
        f"a new request would wait {seconds:.1f} seconds for its turn, and this one may wait"
        f" {max_seconds:g}; try again later",
        retry_after=max(MIN_RETRY_SECONDS, seconds - max_seconds),
    )
