"""Large steps on CUDA: prompts by whole tiles beside decodes, against PyTorch's own kernels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from llm_service.checkpoint import LLMConfig
from llm_service.engines.base import Prompt
from llm_service.engines.torch.block_manager import BlockManager
from llm_service.engines.torch.decoder import Decoder
from llm_service.engines.torch.kernels.base import Kernels
from llm_service.engines.torch.kernels.create import kernels_for
from llm_service.engines.torch.kernels.torch_kernels import TorchKernels
from llm_service.engines.torch.model_runner import ModelRunner
from llm_service.engines.torch.scheduler import Scheduler
from llm_service.engines.torch.sequence import Sequence
from llm_service.engines.torch.weights import empty_decoder
from llm_service.sampling import SamplingParams

CONFIGS = Path(__file__).parents[4] / "data" / "configs"
CUDA = torch.device("cuda")
BLOCK_COUNT = 400
# More than an answer's worth of each is computed beside the others' prompts.
PROMPT_LENGTHS = (1500, 40, 700, 3000, 900, 65)

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("size", ["8B", "1B"])
@pytest.mark.parametrize("block_size", [64, 16])
def test_logits_equal_those_of_pytorchs_kernels(size: str, block_size: int) -> None:
    config = LLMConfig.from_checkpoint(CONFIGS / f"InternVL2_5-{size}")
    config = replace(config, layer_count=2, vocabulary_size=1024)
    decoder = _decoder(config, kernels_for(CUDA, config))
    for parameter in decoder.parameters():
        parameter.detach().normal_(std=0.02)
    reference = _decoder(config, TorchKernels())
    reference.load_state_dict(decoder.state_dict())
    runners = [ModelRunner(each, BLOCK_COUNT, block_size, 8, 2048) for each in (decoder, reference)]
    scheduler = Scheduler(BlockManager(BLOCK_COUNT, block_size), 2048, 8, 1024)
    step_sizes = set()
    for number, length in enumerate(PROMPT_LENGTHS):
        scheduler.add(_sequence(number, length))
        step_sizes |= _compare_steps(runners, scheduler, 3)
    assert any(size > 1000 for size in step_sizes)
    assert any(768 > size > 512 for size in step_sizes)


def _decoder(config: LLMConfig, kernels: Kernels) -> Decoder:
    return empty_decoder(config, kernels).to(torch.bfloat16).to_empty(device=CUDA)


def _sequence(number: int, length: int) -> Sequence:
    token_ids = torch.randint(1024, (length,), generator=torch.Generator().manual_seed(number))
    prompt = Prompt(token_ids.tolist(), torch.empty(0, 1))
    params = SamplingParams(max_tokens=30)
    return Sequence(prompt, params, 30, vocabulary_size=1024, order=(0, number))


def _compare_steps(runners: list[ModelRunner], scheduler: Scheduler, step_count: int) -> set[int]:
    """Returns how many tokens the steps had."""
    sizes = set()
    for _ in range(step_count):
        scheduled = scheduler.schedule()
        inputs = runners[0].inputs(scheduled)
        sizes.add(inputs.token_count)
        logits, expected = (runner.logits(inputs).float() for runner in runners)
        for row, expected_row in zip(logits, expected, strict=True):
            assert (row - expected_row).norm() / expected_row.norm() < 0.03
        for sequence in scheduled:
            sequence.mark_launched()
        for row, sequence in zip(expected, inputs.sampled, strict=True):
            sequence.append(int(row.argmax()))
            if sequence.finish_reason is not None:
                scheduler.finish(sequence)
    return sizes
