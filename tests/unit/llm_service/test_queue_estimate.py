"""The LLM service's backlog beside the truth: slots full of answers, and a queue behind them."""

from __future__ import annotations

from collections import deque
from heapq import heapify, heappop, heappush, heapreplace
from itertools import count, product
from statistics import mean

import pytest

from llm_service.backlog import Place, SequenceBacklog
from llm_service.engines.base import EngineLoad
from tests.unit.llm_service.test_backlog import Clock, Engine

STALL_SECONDS = 600.0


class Slots(Engine):
    """Answers so many requests at a time, in the order in which they come.

    Args:
        slot_count: requests that are answered at a time.
        answer_seconds: from a first token to the last one.
        spread: the first answers end one after the other; else all together.
    """

    def __init__(self, slot_count: int, answer_seconds: float, *, spread: bool) -> None:
        super().__init__(0)
        self.clock = Clock()
        self.backlog = SequenceBacklog(self, self.clock)
        self._answer_seconds = answer_seconds
        self._free_count = slot_count
        self._queue_length = 0
        self._waiting: deque[Place] = deque()
        self._numbers = count()
        self._running: list[tuple[float, int, Place]] = []
        for index in range(slot_count):
            self._come()
            share = (index + 1) / slot_count if spread else 1.0
            self._begin(share * answer_seconds)

    def load(self) -> EngineLoad:
        startable_count = 0 if self._waiting else self._free_count
        return EngineLoad(
            len(self._running), len(self._waiting), 1, 1, startable_sequence_count=startable_count
        )

    def keep(self, queue_length: int) -> None:
        """Has so many wait from now on: who begins is followed by another."""
        self._queue_length = queue_length
        self._fill()

    def advance(self, seconds: float) -> None:
        """Moves the clock; answers end, and others begin."""
        end = self.clock.now + seconds
        while self._running[0][0] <= end:
            self.clock.now = self._running[0][0]
            while self._running and self._running[0][0] <= self.clock.now:
                heappop(self._running)[-1].leave()
                self._free_count += 1
            self._fill()
        self.clock.now = end

    def stall(self, seconds: float) -> None:
        """Moves the clock, and nothing else."""
        self.clock.now += seconds
        self._running = [(end + seconds, number, place) for end, number, place in self._running]

    def wait_seconds(self) -> float:
        """Returns the true wait of a request that came now."""
        ends = [end for end, *_ in self._running]
        heapify(ends)
        end = self.clock.now
        for _ in range(len(self._waiting) + 1):
            end = heapreplace(ends, ends[0] + self._answer_seconds)
        return end - self.clock.now

    def _fill(self) -> None:
        while self._free_count or len(self._waiting) < self._queue_length:
            while len(self._waiting) < max(1, self._queue_length):
                self._come()
            if self._free_count:
                self._begin(self._answer_seconds)

    def _come(self) -> None:
        place = self.backlog.place(1, None)
        place.take()
        self._waiting.append(place)

    def _begin(self, seconds: float) -> None:
        place = self._waiting.popleft()
        self._free_count -= 1
        heappush(self._running, (self.clock.now + seconds, next(self._numbers), place))
        place.begin(0)


SHAPES = [
    pytest.param(slot_count, seconds, spread, id=f"{slot_count}x{seconds}s{'-spread' * spread}")
    for slot_count, seconds, spread in product((4, 64), (2.0, 20.0, 120.0), (False, True))
]


def queue_lengths(slot_count: int) -> tuple[int, int, int]:
    return 1, slot_count // 2, 2 * slot_count


def estimates(slots: Slots, step: float, step_count: int) -> list[tuple[float, float]]:
    """Returns what is said and the truth, at so many moments."""
    pairs = []
    for _ in range(step_count):
        slots.advance(step)
        pairs.append((slots.backlog.seconds(), slots.wait_seconds()))
    return pairs


@pytest.mark.parametrize(("slot_count", "seconds", "spread"), SHAPES)
def test_the_estimate_is_near_the_truth(slot_count: int, seconds: float, spread: bool) -> None:
    for queue_length in queue_lengths(slot_count):
        slots = Slots(slot_count, seconds, spread=spread)
        slots.keep(queue_length)
        pairs = estimates(slots, 0.1301 * seconds, 40)
        for said, true in pairs:
            assert said <= 3 * (true + seconds)
        steady = pairs[16:]  # two rounds of answers later
        assert min(said for said, _ in steady) >= mean(true for _, true in steady) / 3


@pytest.mark.parametrize(("slot_count", "seconds", "spread"), SHAPES)
def test_a_queue_that_grows_at_once_is_not_said_to_take_for_ever(
    slot_count: int, seconds: float, spread: bool
) -> None:
    """One that waits is all that shows a pace, where all answers end together."""
    slots = Slots(slot_count, seconds, spread=spread)
    slots.keep(1)
    slots.advance(4.55 * seconds)
    slots.keep(2 * slot_count)
    for said, true in estimates(slots, 0.1301 * seconds, 20):
        assert true / 4 <= said <= 3 * (true + seconds)


@pytest.mark.parametrize(("slot_count", "seconds", "spread"), SHAPES)
def test_a_stall_that_is_over_is_soon_forgotten(
    slot_count: int, seconds: float, spread: bool
) -> None:
    for queue_length in queue_lengths(slot_count):
        slots = Slots(slot_count, seconds, spread=spread)
        slots.keep(queue_length)
        slots.advance(4.5 * seconds)
        before = slots.backlog.seconds()
        slots.stall(STALL_SECONDS)
        assert slots.backlog.seconds() > before
        slots.advance(max(30.0, 1.5 * seconds))
        said, true = slots.backlog.seconds(), slots.wait_seconds()
        assert said <= 3 * (true + seconds), (queue_length, said, true)
