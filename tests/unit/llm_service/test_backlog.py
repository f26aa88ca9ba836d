"""When a request has to wait for the engine, and when its pace does not matter."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import pytest

from llm_service.backlog import SequenceBacklog
from llm_service.engines.base import EngineLoad, Request, TokenOutput
from protos.errors import OverloadedError
from tests.idle_engine import IdleEngine

# 63 slots, of which one is free again after so long.
TURN_SECONDS = 10.0


class Engine(IdleEngine):
    """Can start so many sequences at once."""

    def __init__(self, startable_count: int) -> None:
        self.startable_count = startable_count

    async def generate(self, request: Request) -> AsyncGenerator[TokenOutput, None]:
        yield TokenOutput([1], "length")

    def load(self) -> EngineLoad:
        return EngineLoad(63, 0, 100, 100, startable_sequence_count=self.startable_count)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def slow_backlog(engine: Engine, clock: Clock) -> SequenceBacklog:
    """Returns one that knows how long a turn takes while the engine is full."""
    backlog = SequenceBacklog(engine, clock)
    startable_count, engine.startable_count = engine.startable_count, 0
    places = [backlog.place(1, None) for _ in range(7)]
    for place in places:
        place.take()
    for place in places:
        clock.now += TURN_SECONDS
        place.begin(0)
    clock.now += 63 * TURN_SECONDS
    for place in places:
        place.leave()
    engine.startable_count = startable_count
    return backlog


@pytest.mark.parametrize(
    ("waiting_count", "startable_count", "least_seconds"),
    [
        pytest.param(1, 63, 0, id="one long prompt alone"),
        pytest.param(0, 1, 0, id="63 of 64 slots, all with tokens"),
        pytest.param(1, 1, 0, id="63 of 64 slots, one without a token"),
        pytest.param(0, 0, 0, id="all slots, but nobody waits"),
        pytest.param(1, 0, 5, id="one waits already"),
        pytest.param(2, 1, 10, id="the free slot has a taker"),
        pytest.param(30, 0, 150, id="a crowd"),
    ],
)
def test_who_can_start_at_once_is_never_refused(
    clock: Clock, waiting_count: int, startable_count: int, least_seconds: float
) -> None:
    backlog = slow_backlog(Engine(startable_count), clock)
    for _ in range(waiting_count):
        backlog.place(1, None).take()
    assert (backlog.seconds() > 0) == bool(least_seconds)
    assert backlog.seconds() >= least_seconds
    newcomer = backlog.place(1, 0.0)
    if not least_seconds:
        newcomer.take_in_time()
        return
    with pytest.raises(OverloadedError):
        newcomer.take_in_time()
    backlog.refuse(None)


def test_each_choice_waits_for_its_own_first_token(clock: Clock) -> None:
    backlog = slow_backlog(Engine(0), clock)
    with backlog.place(4, None) as place:
        place.take()
        place.take()
        whole = backlog.seconds()
        for index in (0, 1, 1, 0):
            place.begin(index)
        assert backlog.seconds() < 0.6 * whole
    assert backlog.seconds() == 0


def test_a_place_that_was_given_back_can_be_taken_again(clock: Clock) -> None:
    backlog = slow_backlog(Engine(0), clock)
    with backlog.place(1, None) as place:
        place.take()
        place.leave()
        assert backlog.seconds() == 0
        place.take()
        assert backlog.seconds() > 0


def test_what_begins_in_free_slots_does_not_show_the_pace(clock: Clock) -> None:
    """Else the first requests of a crowd would promise the others a quick turn."""
    engine = Engine(64)
    backlog = slow_backlog(engine, clock)
    for _ in range(60):
        with backlog.place(1, None) as place:
            place.take()
            clock.now += 0.01
            place.begin(0)
    engine.startable_count = 0
    backlog.place(3, None).take()
    assert backlog.seconds() == pytest.approx(3 * TURN_SECONDS, rel=0.3)
