"""A bound on the queue, as gateways send it: who is refused, and how long would they wait?"""

from __future__ import annotations

import math
from collections.abc import Iterator
from heapq import heappop, heappush
from itertools import count, islice

import pytest

from protos.errors import OverloadedError
from protos.process.backlog import Backlog, Job, refuse_wait
from tests.unit.protos.test_backlog import HandClock

BOUND_SECONDS = 0.25
PAUSE_SECONDS = 0.05


class Service:
    """Does jobs of one unit in the order in which they come, so many at a time.

    Args:
        clock: is moved by whoever asks.
        pace: units done in a second.
        batch_size: most jobs that are begun and done together.
    """

    def __init__(self, clock: HandClock, pace: float, batch_size: int) -> None:
        self.backlog = Backlog(clock)
        self.batch_end = math.inf
        self._clock = clock
        self._pace = pace
        self._batch_size = batch_size
        self._queue: list[Job] = []
        self._batch: list[Job] = []

    def take(self) -> None:
        """Adds a job, unless the queue is too long."""
        refuse_wait(self.backlog.seconds(), BOUND_SECONDS)
        job = self.backlog.job()
        job.enter(1)
        self._queue.append(job)
        if not self._batch:
            self._begin()

    def end_batch(self) -> int:
        """Ends the batch at its time; returns how many jobs were done."""
        done_count = len(self._batch)
        for job in self._batch:
            job.finish(1)
        self._begin()
        return done_count

    def wait_seconds(self) -> float:
        """Returns how long a job that came now would wait."""
        if not self._batch:
            return 0.0
        return self.batch_end - self._clock.now + len(self._queue) / self._pace

    def _begin(self) -> None:
        self._batch = self._queue[: self._batch_size]
        del self._queue[: self._batch_size]
        seconds = len(self._batch) / self._pace if self._batch else math.inf
        self.batch_end = self._clock.now + seconds


def verdicts(service: Service, clock: HandClock, client_count: int) -> Iterator[tuple[bool, float]]:
    """Yields of each call whether it was taken, and how long it would wait.

    Each client calls again when it has its answer, or, if it was refused, after a pause.
    """
    number = count()
    calls = [(clock.now + index * 1e-4, index) for index in range(client_count)]
    while True:
        if not calls or service.batch_end < calls[0][0]:
            clock.now = service.batch_end
            for _ in range(service.end_batch()):
                heappush(calls, (clock.now + 1e-4 * (1 + next(number) % 8), 0))
            continue
        clock.now, _ = heappop(calls)
        wait_seconds = service.wait_seconds()
        try:
            service.take()
        except OverloadedError:
            heappush(calls, (clock.now + PAUSE_SECONDS, 0))
            yield False, wait_seconds
        else:
            yield True, wait_seconds


@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize(
    ("client_count", "pace", "are_some_refused"),
    [
        pytest.param(1, 2.0, False, id="one client of a slow service"),
        pytest.param(16, 1000.0, False, id="a fast service"),
        pytest.param(16, 100.0, False, id="16 clients wait for 0.15 s"),
        pytest.param(16, 40.0, True, id="16 clients wait for 0.38 s"),
        pytest.param(16, 15.0, True, id="16 clients wait for 1 s"),
    ],
)
def test_long_queues_are_refused_and_short_ones_are_not(
    client_count: int, pace: float, are_some_refused: bool, batch_size: int
) -> None:
    clock = HandClock()
    service = Service(clock, pace, batch_size)
    learnt = list(islice(verdicts(service, clock, client_count), 100, 2000))
    refused = [seconds for is_taken, seconds in learnt if not is_taken]
    taken = [seconds for is_taken, seconds in learnt if is_taken]
    assert bool(refused) == are_some_refused
    # A batch counts as waiting until all of it is done.
    slack = batch_size / pace
    assert all(BOUND_SECONDS - slack <= seconds for seconds in refused), (min(refused), slack)
    assert all(seconds <= BOUND_SECONDS + slack for seconds in taken), (max(taken), slack)
