"""Logits and greedy tokens of whole conversations, equal to the reference's.

The images' embeddings come from the golden data, so that only the language model is on trial.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import pytest
import torch

from llm_service.checkpoint import LLMConfig
from llm_service.engines import LLMEngine, Prompt, create_engine
from llm_service.engines.torch_engine.block_manager import BlockManager
from llm_service.engines.torch_engine.model_runner import ModelRunner
from llm_service.engines.torch_engine.scheduler import Scheduler
from llm_service.engines.torch_engine.sequence import Sequence
from llm_service.engines.torch_engine.weights import load_decoder
from llm_service.sampling import SamplingParams
from llm_service.settings import Settings
from llm_service.tokenizer import IMAGE_CONTEXT, Tokenizer
from tests.parity import golden

BLOCK_SIZE = 8
KV_TOKENS = 8192


@dataclass(frozen=True)
class Conversation:
    """One conversation of golden.json."""

    name: str
    prompt: Prompt
    greedy_token_ids: list[int]


@pytest.fixture(scope="module")
def conversations(checkpoint_dir: Path) -> list[Conversation]:
    """The checkpoint's conversations, with context tokens replaced by virtual tokens."""
    golden.need_weights(checkpoint_dir)
    golden.need_tokenizer(checkpoint_dir)
    documents = golden.read_json(checkpoint_dir / "golden.json")["conversations"]
    tensors = golden.read_tensors(checkpoint_dir / "golden.safetensors")
    config = LLMConfig.from_checkpoint(checkpoint_dir)
    context_id = Tokenizer.from_checkpoint(checkpoint_dir).special_id(IMAGE_CONTEXT)
    found = []
    for document in documents:
        if any(f"embeds.{name}" not in tensors for name in document["images"]):
            continue
        ids = golden.decode_run_lengths(document["input_ids_rle"])
        virtual_ids = count(config.vocabulary_size)
        token_ids = [next(virtual_ids) if item == context_id else item for item in ids]
        rows = [tensors[f"embeds.{name}"].flatten(0, 1) for name in document["images"]]
        table = torch.cat([torch.empty(0, config.hidden_size), *rows])
        prompt = Prompt(token_ids, table)
        found.append(Conversation(document["name"], prompt, document["greedy_16"]))
    if not found:
        pytest.skip("the golden data has no embeddings for any conversation")
    return found


@pytest.mark.parametrize("max_batch_tokens", [4096, 131])
def test_logits_equal_the_reference(
    checkpoint_dir: Path, conversations: list[Conversation], max_batch_tokens: int
) -> None:
    config = LLMConfig.from_checkpoint(checkpoint_dir)
    tensors = golden.read_tensors(checkpoint_dir / "golden.safetensors")
    expected = golden.tensors_named(tensors, "logits")
    decoder = load_decoder(checkpoint_dir, config, torch.device("cpu"), torch.float32)
    for conversation in (item for item in conversations if item.name in expected):
        block_count = _block_count(conversation.prompt)
        runner = ModelRunner(decoder, block_count, BLOCK_SIZE)
        scheduler = Scheduler(BlockManager(block_count, BLOCK_SIZE), max_batch_tokens, 1)
        logits = _last_logits(scheduler, runner, conversation.prompt)
        torch.testing.assert_close(logits, expected[conversation.name], rtol=0, atol=1e-4)


async def test_greedy_tokens_equal_the_reference(
    checkpoint_dir: Path, conversations: list[Conversation]
) -> None:
    engine = create_engine(_settings(checkpoint_dir), LLMConfig.from_checkpoint(checkpoint_dir))
    try:
        for conversation in conversations:
            assert await _greedy(engine, conversation) == conversation.greedy_token_ids
    finally:
        await engine.close()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
async def test_greedy_tokens_on_cuda(
    checkpoint_dir: Path, conversations: list[Conversation]
) -> None:
    settings = _settings(checkpoint_dir, 53).model_copy(update={"device": "cuda"})
    assert await _greedy_together(settings, conversations) == [
        conversation.greedy_token_ids for conversation in conversations
    ]


async def test_greedy_tokens_of_all_together_in_chunks(
    checkpoint_dir: Path, conversations: list[Conversation]
) -> None:
    assert await _greedy_together(_settings(checkpoint_dir, 53), conversations) == [
        conversation.greedy_token_ids for conversation in conversations
    ]


async def test_greedy_tokens_after_preemption(
    checkpoint_dir: Path, conversations: list[Conversation], monkeypatch: pytest.MonkeyPatch
) -> None:
    preempted: list[Sequence] = []
    preempt = Scheduler._preempt_newest

    def recorded(self: Scheduler) -> None:
        preempted.append(self.running[-1])
        preempt(self)

    monkeypatch.setattr(Scheduler, "_preempt_newest", recorded)
    together = conversations * 2
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
    engine = create_engine(settings, LLMConfig.from_checkpoint(settings.checkpoint))
    try:
        outputs = await asyncio.gather(*(_greedy(engine, item) for item in conversations))
        load = engine.load()
    finally:
        await engine.close()
    assert load.free_kv_tokens == load.total_kv_tokens
    return outputs


def _last_logits(scheduler: Scheduler, runner: ModelRunner, prompt: Prompt) -> torch.Tensor:
    """Returns the logits [vocabulary_size] after the prompt, read in as many steps as it takes."""
    sequence = Sequence(prompt, SamplingParams(), max_tokens=1)
    scheduler.add(sequence)
    while True:
        logits = runner.run(scheduler.schedule())
        if sequence.is_sampled:
            return logits[0]
        sequence.mark_computed()


async def _greedy(engine: LLMEngine, conversation: Conversation) -> list[int]:
    params = SamplingParams(max_tokens=len(conversation.greedy_token_ids))
    token_ids: list[int] = []
    async with aclosing(engine.generate(conversation.prompt, params)) as outputs:
        async for output in outputs:
            token_ids += output.token_ids
    return token_ids


def _block_count(prompt: Prompt) -> int:
    return -(-len(prompt.token_ids) // BLOCK_SIZE)


def _settings(
    checkpoint_dir: Path, max_batch_tokens: int = 2048, kv_tokens: int = KV_TOKENS
) -> Settings:
    config = LLMConfig.from_checkpoint(checkpoint_dir)
    return Settings(
        checkpoint=checkpoint_dir,
        device="cpu",
        dtype="float32",
        block_size=BLOCK_SIZE,
        max_batch_tokens=max_batch_tokens,
        kv_cache_byte_count=kv_tokens * config.kv_values_per_token * 4,
    )
