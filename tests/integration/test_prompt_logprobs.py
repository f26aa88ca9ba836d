"""Log probabilities of prompts over real gRPC, by a real engine over a tiny checkpoint."""

from __future__ import annotations

from collections.abc import AsyncIterator

import grpc
import pytest
import pytest_asyncio

from llm_service.settings import Settings, TorchOptions
from protos.internvl.v1 import llm_pb2, llm_pb2_grpc
from protos.process.settings import MIB
from tests.integration.llm_calls import exchange
from tests.integration.real_services import running_llm
from tests.random_checkpoint import write_random_checkpoint

pytestmark = pytest.mark.asyncio(loop_scope="module")

Responses = list[llm_pb2.GenerateResponse]
TEXT = "The quick brown fox jumps over the lazy dog, and the dog sleeps on. " * 3
STEP_TOKEN_COUNT = 48


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stub(
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[llm_pb2_grpc.LLMServiceAsyncStub]:
    folder = tmp_path_factory.mktemp("checkpoint")
    write_random_checkpoint(folder)
    options = TorchOptions(
        device="cpu", dtype="float32", thread_count=1, max_step_token_count=STEP_TOKEN_COUNT
    )
    settings = Settings(checkpoint=folder, torch=options, kv_cache_byte_count=16 * MIB)
    async with (
        running_llm(settings) as address,
        grpc.aio.insecure_channel(address) as channel,
    ):
        yield llm_pb2_grpc.LLMServiceStub(channel)


async def generated(
    stub: llm_pb2_grpc.LLMServiceAsyncStub,
    prompt: str | list[int],
    *,
    choice_count: int = 1,
    top_count: int = 2,
    is_told: bool = True,
) -> Responses:
    """Returns the answer of 4 tokens a choice."""
    start = llm_pb2.GenerateStart(
        choice_count=choice_count,
        logprobs=llm_pb2.LogprobOptions(top_count=top_count, prompt=is_told),
        stop=llm_pb2.StopConditions(max_token_count=4, ignore_end_tokens=True),
    )
    if isinstance(prompt, str):
        start.text = prompt
    else:
        start.token_ids.ids.extend(prompt)
    return await exchange(stub, llm_pb2.GenerateRequest(start=start))


def kinds(responses: Responses) -> list[str]:
    """Returns what the messages are, equal neighbours once."""
    names = [response.WhichOneof("message") or "" for response in responses]
    return [name for name, before in zip(names, ["", *names], strict=False) if name != before]


def told(responses: Responses) -> list[llm_pb2.TokenLogprob]:
    """Returns the prompt's tokens."""
    return [token for response in responses for token in response.prompt_logprobs.tokens]


def written(responses: Responses, choice_index: int = 0) -> list[llm_pb2.TokenLogprob]:
    """Returns the tokens of a choice."""
    deltas = [response.delta for response in responses if response.HasField("delta")]
    return [token for d in deltas if d.choice_index == choice_index for token in d.logprobs]


async def test_a_prompt_is_told_in_small_messages_before_any_token(
    stub: llm_pb2_grpc.LLMServiceAsyncStub,
) -> None:
    responses = await generated(stub, TEXT)
    assert kinds(responses) == ["wanted", "prompt_logprobs", "delta", "finished", "usage"]
    tokens = told(responses)
    assert len(tokens) == responses[-1].usage.prompt_token_count > 4 * STEP_TOKEN_COUNT
    assert b"".join(token.token for token in tokens).decode() == TEXT
    assert max(len(response.prompt_logprobs.tokens) for response in responses) <= 32
    assert (tokens[0].logprob, list(tokens[0].top)) == (0, [])
    for token in tokens[1:]:
        assert token.logprob < 0
        best, second = token.top
        assert best.logprob > second.logprob
        assert token.logprob <= best.logprob
        assert not best.top
        assert best.token
    assert [len(token.top) for token in written(responses)] == [2] * 4


async def test_the_answer_as_a_prompt_has_the_log_probabilities_that_it_had(
    stub: llm_pb2_grpc.LLMServiceAsyncStub,
) -> None:
    first = await generated(stub, TEXT)
    answer = written(first)
    token_ids = [token.token_id for token in [*told(first), *answer]]
    second = await generated(stub, token_ids)
    tokens = told(second)
    assert [token.token_id for token in tokens] == token_ids
    for token, expected in zip(tokens, [*told(first), *answer], strict=True):
        assert token.logprob == pytest.approx(expected.logprob, abs=1e-4)
        assert [one.token_id for one in token.top] == [one.token_id for one in expected.top]
    # Greedy: what the model wrote is what it finds most probable.
    assert all(token.token_id == token.top[0].token_id for token in tokens[-len(answer) :])
    assert any(token.token_id != token.top[0].token_id for token in tokens[1:])
    assert second[-1].usage.cached_token_count == 0


async def test_of_several_choices_the_prompt_is_told_once_and_first(
    stub: llm_pb2_grpc.LLMServiceAsyncStub,
) -> None:
    alone = await generated(stub, TEXT)
    responses = await generated(stub, TEXT, choice_count=3)
    assert kinds(responses)[:3] == ["wanted", "prompt_logprobs", "delta"]
    assert kinds(responses).count("prompt_logprobs") == 1
    assert [token.token_id for token in told(responses)] == [t.token_id for t in told(alone)]
    for choice_index in range(3):
        assert len(written(responses, choice_index)) == 4
    assert responses[-1].usage.output_token_count == 12
    assert responses[-1].usage.prompt_token_count == alone[-1].usage.prompt_token_count


async def test_nobody_is_told_of_a_prompt_unasked(stub: llm_pb2_grpc.LLMServiceAsyncStub) -> None:
    responses = await generated(stub, TEXT, is_told=False)
    assert kinds(responses) == ["wanted", "delta", "finished", "usage"]


async def test_a_prompt_of_one_token(stub: llm_pb2_grpc.LLMServiceAsyncStub) -> None:
    responses = await generated(stub, [65], top_count=0)
    assert kinds(responses) == ["wanted", "prompt_logprobs", "delta", "finished", "usage"]
    assert [(token.token_id, token.logprob) for token in told(responses)] == [(65, 0)]
