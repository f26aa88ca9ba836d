"""Our decoders against transformers' on the same random weights: logits in every batching."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from llm_service.checkpoint import LLMConfig
from llm_service.engines.base import Prompt
from llm_service.engines.torch import step_graphs, weights
from llm_service.engines.torch.block_manager import BlockManager
from llm_service.engines.torch.model_runner import ModelRunner
from llm_service.engines.torch.scheduler import Scheduler
from llm_service.engines.torch.sequence import Sequence
from llm_service.engines.torch.weights import load_decoder
from llm_service.sampling import SamplingParams
from tests.unit.llm_service.engines.torch.reference import Tensors, reference_model
from tests.unit.llm_service.engines.torch.replays import TiledKernels, replayed
from tests.unit.llm_service.engines.torch.tiny import (
    EVERY_FAMILY,
    QWEN2,
    Config,
    random_tensors,
    write_checkpoint,
)

BLOCK_COUNT, BLOCK_SIZE = 64, 4
TABLE = torch.randn(5, 32, generator=torch.Generator().manual_seed(7))
TOKEN_IDS = [
    [3, 1, 4, 1, 5, 9, 2, 6, 5, 35, 8, 9, 7],
    [27, 18],
    # Five virtual tokens between text.
    [11, 61, 62, 63, 64, 65, 12, 13],
]


@EVERY_FAMILY
@pytest.mark.parametrize("max_batch_tokens", [100, 7, 1])
def test_logits_equal_those_of_transformers(
    tmp_path: Path, llm: Config, max_batch_tokens: int
) -> None:
    tensors = random_tensors(llm)
    _compare_logits(
        _runner(tmp_path, llm, tensors), reference_model(llm, tensors), max_batch_tokens
    )


@EVERY_FAMILY
@pytest.mark.parametrize(
    ("max_batch_tokens", "large_step_token_count"),
    [
        (20, 21),
        *(
            pytest.param(*pair, marks=pytest.mark.slow)
            for pair in [(100, 21), (7, 21), (100, 1000), (20, 1000), (7, 1000)]
        ),
    ],
)
def test_logits_of_replayed_steps_equal_them_too(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    llm: Config,
    max_batch_tokens: int,
    large_step_token_count: int,
) -> None:
    replays = replayed(monkeypatch)
    monkeypatch.setattr(step_graphs, "TOKEN_SIZES", (4, 21))
    monkeypatch.setattr(step_graphs, "FURTHER_TOKEN_SIZE", 20)
    # From so many on, decodes are tiles of their own.
    monkeypatch.setattr(step_graphs, "LARGE_STEP_TOKEN_COUNT", large_step_token_count)
    monkeypatch.setattr(weights, "kernels_for", lambda *_: TiledKernels())
    tensors = random_tensors(llm)
    runner = _runner(tmp_path, llm, tensors)
    _compare_logits(runner, reference_model(llm, tensors), max_batch_tokens)
    assert sum(replay.count > 0 for replay in replays) >= (1 if max_batch_tokens == 100 else 3)


@pytest.mark.gpu
@EVERY_FAMILY
@pytest.mark.parametrize("max_batch_tokens", [100, 20, 7])
def test_logits_of_cuda_equal_them_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, llm: Config, max_batch_tokens: int
) -> None:
    monkeypatch.setattr(step_graphs, "TOKEN_SIZES", (4, 21))
    tensors = random_tensors(llm)
    runner = _runner(tmp_path, llm, tensors, device="cuda")
    _compare_logits(runner, reference_model(llm, tensors), max_batch_tokens, tolerance=1e-4)


def _compare_logits(
    runner: ModelRunner,
    reference: torch.nn.Module,
    max_batch_tokens: int,
    tolerance: float = 2e-5,
) -> None:
    scheduler = Scheduler(BlockManager(BLOCK_COUNT, BLOCK_SIZE), max_batch_tokens, 3)
    sequences = [_sequence(token_ids) for token_ids in TOKEN_IDS]
    for sequence in sequences:
        scheduler.add(sequence)
    compared = 0
    while scheduler.has_work:
        scheduled = scheduler.schedule()
        inputs = runner.inputs(scheduled)
        logits = runner.logits(inputs)
        for sequence in scheduled:
            sequence.mark_launched()
        for row, sequence in zip(logits, inputs.sampled, strict=True):
            expected = _reference_logits(reference, sequence.token_ids)
            torch.testing.assert_close(row.cpu(), expected, rtol=0, atol=tolerance)
            compared += 1
            sequence.append(int(row.argmax()))
            if sequence.finish_reason is not None:
                scheduler.finish(sequence)
    assert compared == 3 * 6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_runs_in_half_precision(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = random_tensors(QWEN2)
    runner = _runner(tmp_path, QWEN2, tensors, dtype)
    scheduler = Scheduler(BlockManager(BLOCK_COUNT, BLOCK_SIZE), 100, 1)
    scheduler.add(_sequence(TOKEN_IDS[2]))
    logits = runner.logits(runner.inputs(scheduler.schedule()))
    assert logits.dtype == dtype
    expected = _reference_logits(reference_model(QWEN2, tensors), TOKEN_IDS[2])
    torch.testing.assert_close(logits[0].float(), expected, rtol=0.05, atol=0.1)


def _runner(
    folder: Path,
    llm: Config,
    tensors: Tensors,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
) -> ModelRunner:
    write_checkpoint(folder, llm, tensors)
    config = LLMConfig.from_checkpoint(folder)
    decoder = load_decoder(folder, config, torch.device(device), dtype)
    return ModelRunner(decoder, BLOCK_COUNT, BLOCK_SIZE, max_running=3)


def _sequence(token_ids: list[int]) -> Sequence:
    return Sequence(Prompt(token_ids, TABLE), SamplingParams(), 6, vocabulary_size=61)


def _reference_logits(model: torch.nn.Module, token_ids: list[int]) -> torch.Tensor:
    """Returns the logits after all tokens, computed at once and without a cache."""
    embedding = model.get_submodule("model.embed_tokens").weight
    assert isinstance(embedding, torch.Tensor)
    embedded = torch.stack([torch.cat([embedding, TABLE])[token_id] for token_id in token_ids])
    with torch.inference_mode():
        logits: torch.Tensor = model(inputs_embeds=embedded[None]).logits[0, -1]
    return logits
