from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator

import pytest

from llm_service import clock as module
from llm_service.backlog import Place, SequenceBacklog
from llm_service.clock import RequestClock, running_clock
from llm_service.engines.base import Account, Request, TokenOutput
from protos.process import call_record
from tests.idle_engine import IdleEngine


class NoEngine(IdleEngine):
    """Generates nothing."""

    def generate(self, request: Request) -> AsyncGenerator[TokenOutput, None]:
        raise NotImplementedError


class Watch:
    """The time that clocks read; it stands until a test moves it."""

    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    watch = Watch()
    monkeypatch.setattr(module, "time", watch)
    return watch


@pytest.fixture
def place() -> Iterator[Place]:
    with SequenceBacklog(NoEngine()).place(2, None) as place:
        yield place


def told(clock: RequestClock) -> dict[str, float]:
    return {stage.name: stage.seconds for stage in clock.stages()}


def test_stages_follow_each_other_and_are_all_of_the_time(watch: Watch, place: Place) -> None:
    clock, account = RequestClock(watch.now, place), Account()
    watch.now += 1
    clock.ask(account)
    account.start(103.5)
    account.start(104.0)  # another choice, later
    watch.now += 4
    clock.tick(1)
    watch.now += 8
    clock.tick(0)
    watch.now += 16  # nobody asks for a while
    assert told(clock) == {"prompt": 1, "queue": 2.5, "prefill": 1.5, "decode": 8}
    stages = clock.stages()
    assert [stage.end for stage in stages[:-1]] == [stage.start for stage in stages[1:]]
    assert (clock.first_token_seconds, clock.total_seconds) == (5, 13)


def test_an_engine_that_does_not_tell_has_no_queue(watch: Watch, place: Place) -> None:
    clock = RequestClock(watch.now, place)
    watch.now += 1
    clock.ask(Account())
    watch.now += 2
    clock.tick(0)
    assert told(clock) == {"prompt": 1, "decode": 0}
    assert clock.first_token_seconds == 3


def test_the_stage_that_a_request_is_in_ends_now(watch: Watch, place: Place) -> None:
    clock, account = RequestClock(watch.now, place), Account()
    watch.now += 1
    assert told(clock) == {"prompt": 1}
    clock.ask(account)
    watch.now += 2
    assert told(clock) == {"prompt": 1, "queue": 2}
    account.start(watch.now)
    watch.now += 4
    assert told(clock) == {"prompt": 1, "queue": 2, "prefill": 4}
    assert not clock.has_ticked


def test_a_prompt_that_the_engine_sends_back_waits_for_its_images(
    watch: Watch, place: Place
) -> None:
    clock, refused = RequestClock(watch.now, place), Account()
    clock.ask(refused)
    refused.start(watch.now)
    watch.now += 3
    clock.ask(Account())
    watch.now += 1
    assert told(clock) == {"prompt": 3, "queue": 1}


def test_the_calls_record_has_the_stages_of_what_fails(watch: Watch, place: Place) -> None:
    def fail() -> None:
        watch.now += 2
        raise ConnectionError

    with call_record.accounted("a/b", None, lambda: None, is_aside=False) as record:
        with pytest.raises(ConnectionError), running_clock(watch.now, place):
            fail()
        assert [(stage.name, stage.seconds) for stage in record.stages] == [("prompt", 2)]
