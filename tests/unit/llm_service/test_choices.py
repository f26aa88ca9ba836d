from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from itertools import accumulate, pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_service.choices import (
    PROMPT_PART_TOKEN_COUNT,
    PromptLogprobs,
    TextDelta,
    TextEnd,
    TextEvent,
    choice_request,
    generate_text,
    interleaved,
    joined_calls,
    prompt_first,
)
from llm_service.detokenizer import Detokenizer, StopStrings
from llm_service.engines.base import (
    FinishReason,
    LogprobTable,
    Prompt,
    Request,
    TokenLogprob,
    TokenOutput,
)
from llm_service.sampling import MAX_SEED, MIN_SEED, SamplingParams
from llm_service.tools.base import ToolCallDelta
from protos.errors import EngineDeadError
from tests.idle_engine import IdleEngine
from tests.real_tokenizers import real_tokenizer

TOKENIZER = "internlm2_5"
PROMPT = Prompt([1], torch.empty(0, 8))


class Engine(IdleEngine):
    """Gives out one token after the other."""

    def __init__(self, token_ids: Sequence[int], reason: FinishReason) -> None:
        self._token_ids = token_ids
        self._reason = reason

    async def generate(self, request: Request) -> AsyncGenerator[TokenOutput, None]:
        params = request.params
        prompt_ids = request.prompt.token_ids[1:]
        if params.wants_prompt_logprobs and prompt_ids:
            logprobs = torch.tensor([[-float(token_id), -1.0] for token_id in prompt_ids])
            top = torch.full((len(prompt_ids), 1), 9)
            yield TokenOutput([], None, prompt_logprobs=LogprobTable(prompt_ids, logprobs, top))
        *first, last = self._token_ids
        for token_id in first:
            yield TokenOutput([token_id], None, logprobs=_logprobs(token_id, params))
        of_last = _logprobs(last, params)
        yield TokenOutput([last], self._reason, cached_token_count=7, logprobs=of_last)


def _logprobs(token_id: int, params: SamplingParams) -> tuple[TokenLogprob, ...]:
    return () if params.logprob_count is None else (TokenLogprob(token_id, -float(token_id)),)


async def generate(
    token_ids: Sequence[int],
    reason: FinishReason = "length",
    *,
    stop_token_ids: Sequence[int] = (),
    stop_strings: Sequence[str] = (),
) -> tuple[str, list[int], TextEnd]:
    """Returns the text, the ids of all deltas and the end."""
    events = generate_text(
        Engine(token_ids, reason),
        Request(PROMPT, SamplingParams(stop_token_ids=frozenset(stop_token_ids))),
        Detokenizer(real_tokenizer(TOKENIZER)),
        StopStrings(stop_strings),
    )
    *deltas, end = [event async for event in events]
    assert isinstance(end, TextEnd)
    texts: list[str] = []
    ids: list[int] = []
    for delta in deltas:
        assert isinstance(delta, TextDelta)
        texts.append(delta.text)
        ids.extend(delta.token_ids)
    return "".join(texts), ids, end


def encode(text: str) -> list[int]:
    return real_tokenizer(TOKENIZER).encode(text)


async def test_end_counts_every_token_and_passes_the_engines_reason_on() -> None:
    ids = encode("red panda")
    text, seen, end = await generate(ids)
    assert (text, seen) == ("red panda", ids)
    assert end == TextEnd("length", None, output_token_count=len(ids), cached_token_count=7)


async def test_ordinary_stop_token_is_counted_but_not_shown() -> None:
    ids = encode("a b")
    text, seen, end = await generate(ids, "stop", stop_token_ids=ids[-1:])
    assert text == "a"
    assert seen == ids
    assert (end.reason, end.output_token_count) == ("stop", len(ids))


async def test_stop_token_inside_the_text_is_shown() -> None:
    """Only the token that ended the sequence is hidden."""
    ids = encode("a b")
    text, _, _ = await generate([*ids, *ids], "length", stop_token_ids=ids[-1:])
    assert text == "a ba b"


async def test_half_character_at_the_end_is_replaced() -> None:
    text, _, _ = await generate([*encode("x"), *encode("🐼")[:2]])
    assert text == "x\ufffd"


async def test_beginning_of_a_stop_string_at_the_end_is_given_back() -> None:
    text, _, end = await generate(encode("wait for ST"), stop_strings=["STOP"])
    assert text == "wait for ST"
    assert (end.reason, end.stop_string) == ("length", None)


async def test_stop_string_in_the_last_held_bytes_counts() -> None:
    text, _, end = await generate([*encode("x"), *encode("🐼")[:2]], stop_strings=["\ufffd"])
    assert text == "x"
    assert (end.reason, end.stop_string) == ("stop", "\ufffd")


async def test_stop_string_ends_before_the_engine_does() -> None:
    ids = encode("one two three")
    text, seen, end = await generate(ids, stop_strings=[" two"])
    assert text == "one"
    assert len(seen) < len(ids)
    assert end.output_token_count == len(seen)
    assert end.reason == "stop"


async def test_each_token_has_its_logprob_while_its_text_is_held_back() -> None:
    ids = encode("x🐼")
    deltas = generate_text(
        Engine(ids, "length"),
        Request(PROMPT, SamplingParams(logprob_count=0)),
        Detokenizer(real_tokenizer(TOKENIZER)),
        StopStrings(["xy"]),
    )
    *events, _ = [event async for event in deltas]
    for event, token_id in zip(events, ids, strict=True):
        assert isinstance(event, TextDelta)
        assert list(event.token_ids) == [token_id]
        assert event.logprobs == (TokenLogprob(token_id, -float(token_id)),)


@pytest.mark.parametrize("token_count", [1, 2, 100])
async def test_all_tokens_of_the_prompt_come_first_in_parts(token_count: int) -> None:
    events = generate_text(
        Engine(encode("a b"), "length"),
        Request(
            Prompt(list(range(50, 50 + token_count)), torch.empty(0, 8)),
            SamplingParams(logprob_count=1, wants_prompt_logprobs=True),
        ),
        Detokenizer(real_tokenizer(TOKENIZER)),
        StopStrings([]),
    )
    told = [event async for event in events]
    parts = [event.tokens for event in told if isinstance(event, PromptLogprobs)]
    assert max(map(len, parts)) <= PROMPT_PART_TOKEN_COUNT
    assert not any(isinstance(event, PromptLogprobs) for event in told[len(parts) :])
    first, *others = [token for part in parts for token in part]
    assert first == TokenLogprob(50, 0.0)
    assert others == [
        TokenLogprob(token_id, -float(token_id), ((9, -1.0),))
        for token_id in range(51, 50 + token_count)
    ]


class Parts(IdleEngine):
    """Gives out tokens so many at a time."""

    def __init__(self, token_ids: Sequence[int], sizes: Sequence[int]) -> None:
        self._token_ids = token_ids
        self._ends = [end for end in accumulate(sizes) if end < len(token_ids)]

    async def generate(self, request: Request) -> AsyncGenerator[TokenOutput, None]:
        borders = [0, *self._ends, len(self._token_ids)]
        for begin, end in pairwise(borders):
            ids = [*self._token_ids[begin:end]]
            reason: FinishReason | None = "length" if end == len(self._token_ids) else None
            logprobs = tuple(TokenLogprob(token_id, -float(token_id)) for token_id in ids)
            yield TokenOutput(ids, reason, cached_token_count=7, logprobs=logprobs)


TEXTS = st.text("ab c\n🐼é", max_size=12)
SIZES = st.lists(st.integers(1, 4), max_size=12)


@settings(deadline=None)  # the first reads a tokenizer
@given(TEXTS.filter(bool), SIZES, st.lists(TEXTS.filter(bool), max_size=2))
def test_an_answer_is_the_same_however_many_tokens_come_at_a_time(
    text: str, sizes: list[int], strings: list[str]
) -> None:
    async def answer(sizes: list[int]) -> tuple[str, list[int], list[TokenLogprob], TextEvent]:
        events = generate_text(
            Parts(encode(text), sizes),
            Request(PROMPT, SamplingParams(logprob_count=0)),
            Detokenizer(real_tokenizer(TOKENIZER)),
            StopStrings(strings),
        )
        *told, end = [event async for event in events]
        deltas = [event for event in told if isinstance(event, TextDelta)]
        assert len(deltas) == len(told)
        return (
            "".join(delta.text for delta in deltas),
            [token_id for delta in deltas for token_id in delta.token_ids],
            [logprob for delta in deltas for logprob in delta.logprobs],
            end,
        )

    assert asyncio.run(answer(sizes)) == asyncio.run(answer([1] * len(text) * 4))


def test_pieces_of_a_call_that_come_together_are_one() -> None:
    pieces = [
        ToolCallDelta(0, "weather", "{"),
        ToolCallDelta(0, "", "}"),
        ToolCallDelta(1, "time", ""),
        ToolCallDelta(1, "", "{"),
        ToolCallDelta(1, "", "}"),
    ]
    joined = [ToolCallDelta(0, "weather", "{}"), ToolCallDelta(1, "time", "{}")]
    assert joined_calls(pieces) == joined


def test_seeds_of_choices_are_a_row_that_begins_anew_at_its_end() -> None:
    seeded = Request(PROMPT, SamplingParams(seed=MAX_SEED), priority=3)
    choices = [choice_request(seeded, index) for index in range(3)]
    assert [choice.params.seed for choice in choices] == [MAX_SEED, MIN_SEED, MIN_SEED + 1]
    assert {choice.priority for choice in choices} == {3}
    free = Request(PROMPT, SamplingParams())
    assert choice_request(free, 3).params.seed is None


def test_the_first_choice_alone_tells_of_the_prompt() -> None:
    asked = Request(PROMPT, SamplingParams(wants_prompt_logprobs=True))
    choices = [choice_request(asked, index) for index in range(3)]
    assert [choice.params.wants_prompt_logprobs for choice in choices] == [True, False, False]
    assert all(choice.account is asked.account for choice in choices)


class Choice:
    """A scripted choice: gives out its events, one each time `turn` is set; notes its closing."""

    def __init__(self, *events: TextEvent | EngineDeadError) -> None:
        self._events = events
        self.turn = asyncio.Semaphore(0)
        self.closed = False

    async def stream(self) -> AsyncGenerator[TextEvent, None]:
        try:
            for event in self._events:
                await self.turn.acquire()
                if isinstance(event, EngineDeadError):
                    raise event
                yield event
        finally:
            self.closed = True


A, B = TextDelta("a", [1]), TextDelta("b", [2])
END = TextEnd("stop", None, 1, 0)


async def test_events_of_choices_come_in_the_order_they_are_made() -> None:
    choices = [Choice(A, END), Choice(B, END)]
    async with aclosing(interleaved([choice.stream() for choice in choices])) as events:
        for index, expected in [(1, B), (0, A), (0, END), (1, END)]:
            choices[index].turn.release()
            assert await anext(events) == (index, expected)
        with pytest.raises(StopAsyncIteration):
            await anext(events)


@pytest.mark.parametrize("count", [1, 2])
async def test_closing_the_events_closes_every_choice(count: int) -> None:
    choices = [Choice(A, END) for _ in range(count)]
    async with aclosing(interleaved([choice.stream() for choice in choices])) as events:
        choices[0].turn.release()
        await anext(events)
    assert all(choice.closed for choice in choices)


@pytest.mark.parametrize("count", [1, 2])
async def test_a_choice_that_fails_ends_all(count: int) -> None:
    choices = [Choice(EngineDeadError("dead")), *(Choice(A, END) for _ in range(count - 1))]
    choices[0].turn.release()
    async with aclosing(interleaved([choice.stream() for choice in choices])) as events:
        with pytest.raises(EngineDeadError):
            await anext(events)
    assert all(choice.closed for choice in choices)


PART = PromptLogprobs([TokenLogprob(1, 0.0)])


async def test_other_choices_begin_once_the_prompt_has_been_told() -> None:
    choices = [Choice(PART, PART, A, END), Choice(B, END)]
    choices[1].turn.release()  # it would have its token at once
    async with aclosing(prompt_first([choice.stream() for choice in choices])) as events:
        for expected in (PART, PART, A):
            choices[0].turn.release()
            assert await anext(events) == (0, expected)
        assert await anext(events) == (1, B)
        for index in (0, 1):
            choices[index].turn.release()
            assert await anext(events) == (index, END)
        with pytest.raises(StopAsyncIteration):
            await anext(events)
    assert all(choice.closed for choice in choices)


@pytest.mark.parametrize("told_count", [1, 2, 3])
async def test_closing_before_or_after_the_prompt_is_told_closes_what_has_begun(
    told_count: int,
) -> None:
    choices = [Choice(PART, A, END), Choice(B, END)]
    choices[1].turn.release()
    async with aclosing(prompt_first([choice.stream() for choice in choices])) as events:
        for _ in range(told_count):
            choices[0].turn.release()
            await anext(events)
    assert [choice.closed for choice in choices] == [True, told_count == 3]


async def test_a_choice_that_fails_before_the_prompt_is_told_ends_all() -> None:
    choices = [Choice(PART, EngineDeadError("dead")), Choice(A, END)]
    async with aclosing(prompt_first([choice.stream() for choice in choices])) as events:
        choices[0].turn.release()
        choices[0].turn.release()
        await anext(events)
        with pytest.raises(EngineDeadError):
            await anext(events)
    assert choices[0].closed
