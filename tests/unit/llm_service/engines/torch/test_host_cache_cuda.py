"""On a GPU, prompts whose prefixes come from host memory: against computing all of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from llm_service.checkpoint import LLMConfig
from llm_service.engines.base import Prompt
from llm_service.engines.torch.block_copies import BlockCopies
from llm_service.engines.torch.block_manager import BlockManager
from llm_service.engines.torch.host_cache import HostCache
from llm_service.engines.torch.host_memory import page_locked
from llm_service.engines.torch.kernels.create import kernels_for
from llm_service.engines.torch.model_runner import ModelRunner
from llm_service.engines.torch.scheduler import Scheduler
from llm_service.engines.torch.sequence import Sequence
from llm_service.engines.torch.weights import empty_decoder
from llm_service.sampling import SamplingParams

CONFIGS = Path(__file__).parents[4] / "data" / "configs"
CUDA = torch.device("cuda")
BLOCK_SIZE, VOCABULARY_SIZE = 64, 1024
# Four of the prompts fit into the KV cache.
BLOCK_COUNT, SLOT_COUNT, PROMPT_COUNT, PROMPT_LENGTH = 100, 220, 8, 1500

pytestmark = pytest.mark.gpu


def test_logits_after_a_prefix_from_host_memory_are_those_of_recomputation() -> None:
    config = LLMConfig.from_checkpoint(CONFIGS / "InternVL2_5-8B")
    config = replace(config, layer_count=4, vocabulary_size=VOCABULARY_SIZE)
    decoder = empty_decoder(config, kernels_for(CUDA, config)).to(torch.bfloat16)
    decoder = decoder.to_empty(device=CUDA)
    for parameter in decoder.parameters():
        parameter.detach().normal_(std=0.02)
    runner, reference = (ModelRunner(decoder, BLOCK_COUNT, BLOCK_SIZE, 8, 2048) for _ in range(2))
    memory = page_locked(SLOT_COUNT * runner.kv_cache[:, :, 0].nbytes)
    cache = HostCache(BlockCopies(runner.kv_cache, memory))
    scheduler = Scheduler(BlockManager(BLOCK_COUNT, BLOCK_SIZE, cache), 2048, 8, 1024)
    for turn in range(3):
        for number in range(PROMPT_COUNT):
            token_ids = _token_ids(number, PROMPT_LENGTH + 70 * turn)
            logits, cached_count = _run(runner, scheduler, token_ids)
            alone = Scheduler(BlockManager(BLOCK_COUNT, BLOCK_SIZE), 2048, 8, 1024)
            expected, _ = _run(reference, alone, token_ids)
            assert (logits - expected).norm() / expected.norm() < 0.03
            if turn:
                assert cached_count >= PROMPT_LENGTH + 70 * (turn - 1) - BLOCK_SIZE
    assert cache.loaded_count > 2 * PROMPT_COUNT * 15


def _token_ids(number: int, count: int) -> list[int]:
    generator = torch.Generator().manual_seed(number)
    token_ids: list[int] = torch.randint(VOCABULARY_SIZE, (5000,), generator=generator).tolist()
    return token_ids[:count]


def _run(
    runner: ModelRunner, scheduler: Scheduler, token_ids: list[int]
) -> tuple[torch.Tensor, int]:
    """Returns the logits after a prompt, and how many of its tokens were in a cache."""
    prompt = Prompt(token_ids, torch.empty(0, 1))
    sequence = Sequence(prompt, SamplingParams(), 1, vocabulary_size=VOCABULARY_SIZE)
    scheduler.add(sequence)
    while True:
        assert scheduler.schedule() == [sequence]
        logits = runner.logits(runner.inputs([sequence])).float().clone()
        sequence.mark_launched()
        if sequence.pending_count:
            break
    scheduler.finish(sequence)
    assert sequence.cached_count is not None
    return logits[0], sequence.cached_count
