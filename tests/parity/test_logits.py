"""Logits and greedy tokens of whole conversations, equal to the reference's.

The images' embeddings come from the golden data, so that only the language model is on trial.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llm_service.checkpoint import LLMConfig
from llm_service.engines.base import LLMEngine, Prompt, Request, TokenLogprob
from llm_service.engines.create import create_engine
from llm_service.engines.torch.block_manager import BlockManager
from llm_service.engines.torch.model_runner import ModelRunner
from llm_service.engines.torch.scheduler import Scheduler
from llm_service.engines.torch.sequence import Sequence
from llm_service.engines.torch.weights import load_decoder
from llm_service.sampling import SamplingParams
from llm_service.settings import Settings, TorchOptions
from llm_service.tokenizer import Tokenizer
from tests.parity import golden
from tests.parity.conversations import Conversation, golden_conversations, greedy_tokens

BLOCK_SIZE = 8
KV_TOKENS = 8192


@pytest.fixture(scope="module")
def conversations(checkpoint_dir: Path) -> list[Conversation]:
    """The checkpoint's conversations, with context tokens replaced by virtual tokens."""
    return golden_conversations(checkpoint_dir)


@pytest.mark.parametrize("max_step_token_count", [4096, 131])
def test_logits_equal_the_reference(
    checkpoint_dir: Path, conversations: list[Conversation], max_step_token_count: int
) -> None:
    config = LLMConfig.from_checkpoint(checkpoint_dir)
    tensors = golden.read_tensors(checkpoint_dir / "golden.safetensors")
    expected = golden.tensors_named(tensors, "logits")
    decoder = load_decoder(checkpoint_dir, config, torch.device("cpu"), torch.float32)
    for conversation in (item for item in conversations if item.name in expected):
        block_count = _block_count(conversation.prompt)
        runner = ModelRunner(decoder, block_count, BLOCK_SIZE, max_running=1)
        scheduler = Scheduler(BlockManager(block_count, BLOCK_SIZE), max_step_token_count, 1)
        logits = _last_logits(scheduler, runner, conversation.prompt)
        torch.testing.assert_close(logits, expected[conversation.name], rtol=0, atol=1e-4)


async def test_greedy_tokens_equal_the_reference(
    checkpoint_dir: Path, conversations: list[Conversation]
) -> None:
    engine = _engine(_settings(checkpoint_dir))
    try:
        for conversation in conversations:
            assert await greedy_tokens(engine, conversation) == conversation.greedy_token_ids
    finally:
        await engine.close()


@pytest.mark.parametrize("max_step_token_count", [4096, 7])
async def test_prompts_that_go_on_as_the_reference_did_are_scored_so(
    checkpoint_dir: Path, conversations: list[Conversation], max_step_token_count: int
) -> None:
    """Of each greedy token that it is the best, of the first one the reference's logits as well."""
    logits = golden.tensors_named(
        golden.read_tensors(checkpoint_dir / "golden.safetensors"), "logits"
    )
    texts = [item for item in conversations if not item.prompt.images]
    engine = _engine(_settings(checkpoint_dir, max_step_token_count))
    try:
        scores = [await _last_scores(engine, conversation) for conversation in texts]
    finally:
        await engine.close()
    assert texts
    for conversation, (first, *others) in zip(texts, scores, strict=True):
        expected = logits[conversation.name].log_softmax(-1)
        best, top = expected.topk(3)
        assert [token_id for token_id, _ in first.top] == top.tolist()
        assert [logprob for _, logprob in first.top] == pytest.approx(best.tolist(), abs=1e-4)
        assert first.logprob == pytest.approx(expected[first.token_id].item(), abs=1e-4)
        assert all(score.token_id == score.top[0][0] for score in (first, *others))
        greedy = [score.token_id for score in (first, *others)]
        assert greedy == conversation.greedy_token_ids


@pytest.mark.gpu
async def test_greedy_tokens_on_cuda(
    checkpoint_dir: Path, conversations: list[Conversation]
) -> None:
    settings = _settings(checkpoint_dir, 53, device="cuda")
    assert await _greedy_together(settings, conversations) == [
        conversation.greedy_token_ids for conversation in conversations
    ]


@pytest.mark.parametrize("max_step_token_count", [53, 1000])
async def test_greedy_tokens_of_sixteen_together(
    checkpoint_dir: Path, conversations: list[Conversation], max_step_token_count: int
) -> None:
    together = _salted(conversations * 4)[:16]
    assert await _greedy_together(_settings(checkpoint_dir, max_step_token_count), together) == [
        conversation.greedy_token_ids for conversation in together
    ]


async def test_greedy_tokens_from_a_prefix_hit(
    checkpoint_dir: Path, conversations: list[Conversation]
) -> None:
    engine = _engine(_settings(checkpoint_dir))
    try:
        for conversation in [*conversations, *conversations]:
            assert await greedy_tokens(engine, conversation) == conversation.greedy_token_ids
        for conversation in conversations:
            blocks = (len(conversation.prompt.token_ids) - 1) // BLOCK_SIZE
            assert await _cached_count(engine, conversation.prompt) == blocks * BLOCK_SIZE
    finally:
        await engine.close()


@pytest.mark.slow
@given(data=st.data())
@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
def test_greedy_tokens_in_any_schedule(
    data: st.DataObject, checkpoint_dir: Path, conversations: list[Conversation]
) -> None:
    """Any mix, budget, cache size and number of running sequences gives the same tokens."""
    chosen = data.draw(st.lists(st.sampled_from(conversations), min_size=1, max_size=8))
    longest = max(_block_count(item.prompt) for item in chosen) * BLOCK_SIZE
    chosen_settings = _settings(
        checkpoint_dir,
        max_step_token_count=data.draw(st.sampled_from([7, 61, 500, 4000])),
        kv_tokens=longest + data.draw(st.integers(3, 30)) * BLOCK_SIZE,
    ).model_copy(update={"max_running_sequence_count": data.draw(st.integers(1, 8))})
    assert asyncio.run(_greedy_together(chosen_settings, chosen)) == [
        conversation.greedy_token_ids for conversation in chosen
    ]


async def test_greedy_tokens_after_preemption(
    checkpoint_dir: Path, conversations: list[Conversation], monkeypatch: pytest.MonkeyPatch
) -> None:
    preempted: list[Sequence] = []
    preempt = Scheduler._preempt

    def recorded(self: Scheduler, sequence: Sequence) -> None:
        preempted.append(sequence)
        preempt(self, sequence)

    monkeypatch.setattr(Scheduler, "_preempt", recorded)
    together = _salted(conversations * 2)
    # All prompts fit at the same time, and are read in one step, but their outputs do not fit.
    kv_tokens = sum(_block_count(conversation.prompt) for conversation in together) * BLOCK_SIZE
    settings = _settings(checkpoint_dir, kv_tokens, kv_tokens)
    assert await _greedy_together(settings, together) == [
        conversation.greedy_token_ids for conversation in together
    ]
    assert preempted


async def _greedy_together(
    settings: Settings, conversations: list[Conversation]
) -> list[list[int]]:
    """Returns the tokens of all conversations, generated at the same time by one engine."""
    engine = _engine(settings)
    try:
        outputs = await asyncio.gather(*(greedy_tokens(engine, item) for item in conversations))
        load = engine.load()
    finally:
        await engine.close()
    assert load.free_kv_token_count == load.total_kv_token_count
    return outputs


async def _last_scores(engine: LLMEngine, conversation: Conversation) -> list[TokenLogprob]:
    """Returns the scores of the reference's greedy tokens behind a conversation."""
    token_ids = [*conversation.prompt.token_ids, *conversation.greedy_token_ids]
    prompt = replace(conversation.prompt, token_ids=token_ids)
    params = SamplingParams(max_tokens=1, logprob_count=3, wants_prompt_logprobs=True)
    async with aclosing(engine.generate(Request(prompt, params))) as outputs:
        tables = [output.prompt_logprobs async for output in outputs]
    scores = [score for table in tables if table for part in table.parts(64) for score in part]
    return scores[-len(conversation.greedy_token_ids) :]


def _salted(conversations: list[Conversation]) -> list[Conversation]:
    """Returns the conversations so that none finds another's prefix."""
    return [
        replace(item, prompt=replace(item.prompt, cache_salt=str(index)))
        for index, item in enumerate(conversations)
    ]


async def _cached_count(engine: LLMEngine, prompt: Prompt) -> int:
    async with aclosing(engine.generate(Request(prompt, SamplingParams(max_tokens=1)))) as outputs:
        return [output.cached_token_count async for output in outputs][0]


def _engine(settings: Settings) -> LLMEngine:
    config = LLMConfig.from_checkpoint(settings.checkpoint)
    return create_engine(settings, config, Tokenizer.from_checkpoint(settings.checkpoint))


def _last_logits(scheduler: Scheduler, runner: ModelRunner, prompt: Prompt) -> torch.Tensor:
    """Returns the logits [vocabulary_size] after the prompt, read in as many steps as it takes."""
    sequence = Sequence(prompt, SamplingParams(), 1, runner.vocabulary_size)
    scheduler.add(sequence)
    while True:
        logits = runner.logits(runner.inputs(scheduler.schedule()))
        if sequence.is_sampled:
            return logits[0]
        sequence.mark_launched()


def _block_count(prompt: Prompt) -> int:
    return -(-len(prompt.token_ids) // BLOCK_SIZE)


def _settings(
    checkpoint_dir: Path,
    max_step_token_count: int = 2048,
    kv_tokens: int = KV_TOKENS,
    device: Literal["cpu", "cuda"] = "cpu",
) -> Settings:
    config = LLMConfig.from_checkpoint(checkpoint_dir)
    return Settings(
        checkpoint=checkpoint_dir,
        torch=TorchOptions(
            device=device,
            dtype="float32",
            thread_count=1,
            block_size=BLOCK_SIZE,
            max_step_token_count=max_step_token_count,
        ),
        kv_cache_byte_count=kv_tokens * config.kv_values_per_token() * 4,
    )
