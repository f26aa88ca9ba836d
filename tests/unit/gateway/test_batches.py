"""Several generations as one answer: order, limits, failures, and who is cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from gateway.batches import CONCURRENT_CHOICE_COUNT, WAITING_EVENT_COUNT, answering_all
from gateway.chat import Answering
from gateway.events import ChatEvent, Finished, PromptLogprobs, TextDelta, TokenLogprob, Usage
from gateway.generation import GenerationRequest
from gateway.services.llm import ModelInfo
from protos.checkpoint.fingerprint import CheckpointFingerprint
from protos.errors import ServiceError

INFO = ModelInfo("m", (), 8, 100, 0, b"", CheckpointFingerprint())


def generation(name: str, choice_count: int = 1) -> GenerationRequest:
    return GenerationRequest("", {"text": name}, str, choice_count=choice_count)


def events_of(request: GenerationRequest, delta_count: int = 1) -> list[ChatEvent]:
    name = request.fields["text"]
    choices = range(request.choice_count)
    deltas = [TextDelta(index, name) for index in choices for _ in range(delta_count)]
    return [*deltas, *(Finished(index, "stop") for index in choices), Usage(1, 2, 3, 4)]


@dataclass
class Script:
    """Answers generations; each waits for its gate, if it has one, after its first event."""

    delta_count: int = 1
    gates: dict[str, asyncio.Event] = field(default_factory=dict)
    failures: dict[str, Exception] = field(default_factory=dict)
    open_names: set[str] = field(default_factory=set)
    peak_count: int = 0
    given_count: int = 0

    @asynccontextmanager
    async def ask(
        self, request: GenerationRequest
    ) -> AsyncIterator[tuple[ModelInfo, AsyncGenerator[ChatEvent, None]]]:
        name = request.fields["text"]
        self.open_names.add(name)
        self.peak_count = max(self.peak_count, len(self.open_names))
        try:
            await asyncio.sleep(0)
            yield INFO, self._events(request)
        finally:
            self.open_names.discard(name)

    async def _events(self, request: GenerationRequest) -> AsyncGenerator[ChatEvent, None]:
        name = request.fields["text"]
        for event in events_of(request, self.delta_count):
            self.given_count += 1
            yield event
            if name in self.gates:
                await self.gates[name].wait()
            if name in self.failures:
                raise self.failures[name]


async def read(answering: Answering) -> list[ChatEvent]:
    async with answering as (info, events):
        assert info is INFO
        return [event async for event in events]


def of_choice(events: Sequence[ChatEvent], index: int) -> list[ChatEvent]:
    return [event for event in events if not isinstance(event, Usage) and event.index == index]


async def test_one_generation_is_passed_on_as_it_is() -> None:
    script = Script()
    request = generation("a", 2)
    assert await read(answering_all(script.ask, [request])) == events_of(request)


async def test_choices_are_counted_through_and_the_usage_is_the_sum() -> None:
    script = Script()
    requests = [generation("a", 2), generation("b", 1), generation("c", 2)]
    events = await read(answering_all(script.ask, requests))
    texts = ["a", "a", "b", "c", "c"]
    for index, text in enumerate(texts):
        assert of_choice(events, index) == [TextDelta(index, text), Finished(index, "stop")]
    assert events[-1] == Usage(3, 6, 9, 12)
    assert len(events) == 11
    assert not script.open_names


async def test_prompts_have_the_index_of_their_first_choice() -> None:
    told = PromptLogprobs((TokenLogprob(b"x", 0.0),))

    @asynccontextmanager
    async def ask(
        request: GenerationRequest,
    ) -> AsyncIterator[tuple[ModelInfo, AsyncGenerator[ChatEvent, None]]]:
        async def events() -> AsyncGenerator[ChatEvent, None]:
            yield told
            yield Usage(1, 1, 0, 0)

        yield INFO, events()

    events = await read(answering_all(ask, [generation("a", 3), generation("b", 3)]))
    assert [event.index for event in events if isinstance(event, PromptLogprobs)] == [0, 3]


@pytest.mark.parametrize(
    ("choice_count", "peak_count"), [(1, CONCURRENT_CHOICE_COUNT), (5, 3), (100, 1), (0, 16)]
)
async def test_so_many_run_at_a_time(choice_count: int, peak_count: int) -> None:
    script = Script()
    numbers = range(3 * CONCURRENT_CHOICE_COUNT)
    requests = [generation(str(number), choice_count) for number in numbers]
    events = await read(answering_all(script.ask, requests))
    assert script.peak_count == peak_count
    assert sum(isinstance(event, Finished) for event in events) == choice_count * len(requests)


@pytest.mark.parametrize("failure", [ServiceError("lost"), ValueError("a bug")], ids=str)
async def test_the_first_failure_ends_all(failure: Exception) -> None:
    never = asyncio.Event()
    script = Script(gates={"a": never, "c": never}, failures={"b": failure})
    requests = [generation(name) for name in "abc"]
    with pytest.raises(type(failure)) as caught:
        await read(answering_all(script.ask, requests))
    assert caught.value is failure
    assert not script.open_names


async def test_a_failure_before_the_first_event_comes_on_entry() -> None:
    @asynccontextmanager
    async def ask(
        request: GenerationRequest,
    ) -> AsyncIterator[tuple[ModelInfo, AsyncGenerator[ChatEvent, None]]]:
        raise ServiceError("full")
        yield

    with pytest.raises(ServiceError, match="full"):
        async with answering_all(ask, [generation("a"), generation("b")]):
            pytest.fail("nothing has begun")


async def test_who_leaves_early_ends_all() -> None:
    script = Script(gates={name: asyncio.Event() for name in "ab"})
    async with answering_all(script.ask, [generation(name) for name in "ab"]) as (_, events):
        await anext(events)
        assert script.open_names == {"a", "b"}
    assert not script.open_names


async def test_who_does_not_read_holds_up_the_generations() -> None:
    script = Script(delta_count=1000)
    async with answering_all(script.ask, [generation(name) for name in "ab"]) as (_, events):
        for _ in range(5000):
            await asyncio.sleep(0)
        held = WAITING_EVENT_COUNT + 1 + len("ab")
        assert script.given_count == held
        rest = [event async for event in events]
    assert len(rest) == 2 * 1001 + 1
