"""Streams of a real service whose tokens come faster than its messages may go."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import NamedTuple

import pytest

from llm_service.engines.base import Request, TokenOutput
from llm_service.engines.pacing import UNPACED, Pacing
from protos.internvl.v1 import llm_pb2, llm_pb2_grpc
from tests.benchmarks.scripted_services import ANSWER, ScriptedLLMEngine
from tests.fakes import happening
from tests.integration.llm_calls import exchange, serving, start, text_of
from tests.real_tokenizers import real_tokenizer

STREAM_COUNT, TOKEN_COUNT = 8, 120
CASES = {
    "plain": start(stop=llm_pb2.StopConditions(max_token_count=TOKEN_COUNT)),
    "stop string": start(
        stop=llm_pb2.StopConditions(max_token_count=TOKEN_COUNT, strings=["Nothing is written"])
    ),
    "two choices": start(stop=llm_pb2.StopConditions(max_token_count=TOKEN_COUNT), choice_count=2),
}


class Answer(NamedTuple):
    """What came of a call: its choices' text and tokens, their ends, its counts of tokens."""

    texts: Sequence[str]
    token_ids: Sequence[Sequence[int]]
    ends: Sequence[tuple[int, str]]
    counts: tuple[int, int]


def answer_of(responses: Sequence[llm_pb2.GenerateResponse]) -> Answer:
    deltas = [response.delta for response in responses if response.HasField("delta")]
    ends = [response.finished for response in responses if response.HasField("finished")]
    usage = responses[-1].usage
    choices = range(len(ends))
    return Answer(
        ["".join(it.text for it in deltas if it.choice_index == choice) for choice in choices],
        [
            [token_id for it in deltas if it.choice_index == choice for token_id in it.token_ids]
            for choice in choices
        ],
        sorted((end.choice_index, f"{end.reason} {end.stop_string}") for end in ends),
        (usage.prompt_token_count, usage.output_token_count),
    )


def delta_count(responses: Sequence[llm_pb2.GenerateResponse]) -> int:
    return sum(response.HasField("delta") for response in responses)


async def ask(
    request: llm_pb2.GenerateRequest, pacing: Pacing
) -> list[list[llm_pb2.GenerateResponse]]:
    """Asks some times side by side; the engine gives each answer a token every 1.5 ms."""
    tokenizer = real_tokenizer("qwen2_5")
    engine = ScriptedLLMEngine(tokenizer.encode(ANSWER))
    async with serving(engine, tokenizer, pacing=pacing) as channel:
        stub = llm_pb2_grpc.LLMServiceStub(channel)
        return await asyncio.gather(*(exchange(stub, request) for _ in range(STREAM_COUNT)))


@pytest.mark.parametrize("case", CASES)
async def test_paced_answers_are_the_same_in_fewer_messages(case: str) -> None:
    request = CASES[case]
    pacing = Pacing(STREAM_COUNT / 0.05)  # a turn every 50 ms
    unpaced, paced = await ask(request, UNPACED), await ask(request, pacing)
    assert {str(answer_of(each)) for each in paced} == {str(answer_of(unpaced[0]))}
    assert text_of(paced[0])
    # What proves that they were paced: of three tokens two had to wait at the least.
    assert sum(map(delta_count, paced)) < sum(map(delta_count, unpaced)) / 3
    assert pacing.stream_count == 0


class WatchedEngine(ScriptedLLMEngine):
    """Notes when a caller has gone."""

    def __init__(self, token_ids: Sequence[int]) -> None:
        super().__init__(token_ids)
        self.was_left = asyncio.Event()

    async def generate(self, request: Request) -> AsyncGenerator[TokenOutput, None]:
        try:
            async with aclosing(super().generate(request)) as outputs:
                async for output in outputs:
                    yield output
        finally:
            self.was_left.set()


async def test_who_hangs_up_between_two_turns_is_gone_at_once() -> None:
    tokenizer = real_tokenizer("qwen2_5")
    engine = WatchedEngine(tokenizer.encode(ANSWER))
    pacing = Pacing(1e-3)  # a turn every 1,000 seconds
    request = start(stop=llm_pb2.StopConditions(max_token_count=1_000_000))
    async with serving(engine, tokenizer, pacing=pacing) as channel:
        call = llm_pb2_grpc.LLMServiceStub(channel).Generate(iter([request]))
        async for response in call:
            if response.HasField("delta"):
                break
        assert pacing.stream_count == 1
        call.cancel()
        await happening(engine.was_left)
        assert pacing.stream_count == 0
