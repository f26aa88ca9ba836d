"""A service's backlog: how much work waits, and the seconds until a newcomer's turn."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from operator import sub

from protos.errors import InvalidArgumentError, OverloadedError

# After so much busy time, what was done before counts a third (1 / e) of what is done now.
PACE_SECONDS = 30.0
# But so many units are kept: where one takes a minute, the last alone says too little.
MIN_UNIT_COUNT = 8
# Nobody plans for longer; a service that stands still would say more and more.
MAX_SECONDS = 3600.0
MIN_RETRY_SECONDS = 0.1
# One job alone waits for nobody, and the service could do more beside it: the batches of one
# picture are half empty, and others would overtake a long prompt. So its pace counts only where it
# is better than what is known.
BUSY_JOB_COUNT = 2


class Pace:
    """The units that are done in a second of busy time, as the recent past shows it.

    Busy time without anything done makes it slower in proportion, and forgets nothing: where
    answers take two minutes, that says nothing of the next one. What is done has the past
    forgotten. A stall that is over counts for PACE_SECONDS, or for as long as the past does.
    """

    def __init__(self) -> None:
        self._unit_count = 0.0
        self._seconds = 0.0

    def add(self, unit_count: float, seconds: float) -> None:
        """Adds units that were done, and the busy seconds since those before them."""
        if self._unit_count:
            seconds = min(seconds, max(PACE_SECONDS, self._seconds))
        least_kept = MIN_UNIT_COUNT / max(self._unit_count, MIN_UNIT_COUNT)
        kept = max(math.exp(-seconds / PACE_SECONDS), least_kept)
        self._unit_count = self._unit_count * kept + unit_count
        self._seconds = self._seconds * kept + seconds

    def is_bettered_by(self, unit_count: float, seconds: float) -> bool:
        """Whether so many units in so many seconds are faster; never, while it is unknown."""
        return seconds * self._unit_count < unit_count * self._seconds

    def seconds(self, unit_count: float, still_seconds: float) -> float:
        """Returns how long units take, after busy seconds without any; 0 while it is unknown."""
        if not self._unit_count:
            return 0.0
        return unit_count * (self._seconds + still_seconds) / self._unit_count


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
        self._pace = Pace()
        # As of the last change: whether it was busy from then on, how long before, and how long of
        # that with nothing done.
        self._moment = clock()
        self._is_busy = False
        self._busy_seconds = 0.0
        self._still_seconds = 0.0

    def job(self) -> Job:
        """Returns a job that is not here yet."""
        return Job(self)

    def seconds(self) -> float:
        """Returns the seconds until the turn of a job that came now; 0 to MAX_SECONDS."""
        if self.waiting_count <= 0:
            return 0.0
        still_seconds = self._still_seconds + self._busy_passed()
        return min(MAX_SECONDS, self._pace.seconds(self.waiting_count, still_seconds))

    def _busy_passed(self) -> float:
        return max(0.0, self._clock() - self._moment) if self._is_busy else 0.0

    def _now(self) -> tuple[float, float]:
        """Returns the moment, and the busy seconds so far."""
        return self._clock(), self._busy_seconds + self._busy_passed()

    def _add(self, job_count: int, unit_count: float) -> None:
        passed = self._busy_passed()
        self._busy_seconds += passed
        self._still_seconds += passed
        self._moment = self._clock()
        self._job_count += job_count
        # Without jobs nothing waits, whatever the sum of fractions says.
        waiting_count = max(0.0, self.waiting_count + unit_count)
        self.waiting_count = waiting_count if self._job_count else 0.0
        self._is_busy = self._looks_busy()

    def _looks_busy(self) -> bool:
        if self._is_full is not None:
            return self._is_full()
        return self._job_count >= BUSY_JOB_COUNT

    def _finish(self, unit_count: float, share: float) -> None:
        """Learns from units that are done, and waited in busy time for a share of theirs."""
        alone_seconds = max(0.0, self._clock() - self._moment)
        self._add(0, -unit_count)
        if share:
            self._pace.add(unit_count * share, self._still_seconds)
            self._still_seconds = 0.0
        elif self._is_full is None and self._pace.is_bettered_by(unit_count, alone_seconds):
            self._pace.add(unit_count, alone_seconds)

    def _learn(self, unit_count: float) -> None:
        self.typical_count += (unit_count - self.typical_count) / 8


class Job:
    """One job: here from `enter` until all of it is done, or the block ends, whatever ends it."""

    def __init__(self, backlog: Backlog) -> None:
        self._backlog = backlog
        self._is_here = False
        self._left = 0.0
        self._entered = (0.0, 0.0)

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
            self._entered = self._backlog._now()

    def measure(self, unit_count: float) -> None:
        """Tells how many units it has, none of which is done."""
        self._backlog._learn(unit_count)
        self._backlog._add(0, unit_count - self._left)
        self._left = unit_count

    def finish(self, unit_count: float) -> None:
        """Says that so many of its units are done; with the last one it leaves."""
        unit_count = min(unit_count, self._left)
        self._left -= unit_count
        self._backlog._finish(unit_count, self.busy_share())
        if not self._left:
            self.leave()

    def busy_share(self) -> float:
        """Returns the share of the time since it entered in which the service was busy."""
        seconds, busy_seconds = map(sub, self._backlog._now(), self._entered)
        return busy_seconds / seconds if seconds > 0 else 0.0

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
