"""Decoders whose matrices are in float8: numbers, logits, answers, starts."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
import torch

from llm_service.checkpoint import LLMConfig
from llm_service.engines.base import EngineStartError, LLMEngine, Prompt
from llm_service.engines.create import create_engine
from llm_service.engines.torch.block_manager import BlockManager
from llm_service.engines.torch.decoder import Decoder, Projection
from llm_service.engines.torch.kernels.fp8 import FP8, LARGEST_FP8, quantised
from llm_service.engines.torch.kernels.torch_kernels import TorchKernels
from llm_service.engines.torch.model_runner import ModelRunner
from llm_service.engines.torch.quantization import check_quantization
from llm_service.engines.torch.scheduler import Scheduler
from llm_service.engines.torch.sequence import Sequence
from llm_service.engines.torch.weights import StoredTypes, load_decoder, stored_types
from llm_service.memory import weight_byte_count
from llm_service.sampling import SamplingParams
from llm_service.settings import Quantization, Settings
from tests.unit.llm_service.engines.torch.answers import NO_ROWS, tokens_of
from tests.unit.llm_service.engines.torch.tiny import (
    EVERY_FAMILY,
    QWEN2,
    Config,
    random_tensors,
    tiny_tokenizer,
    write_checkpoint,
)

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
TOKEN_IDS = [3, 1, 4, 1, 5, 9, 2, 6, 5, 35, 8, 9, 7]
# The width that float8 has for a number: three bits behind the first, and what is left near 0.
HALF_STEP, SMALLEST_HALF_STEP = 2**-4, 2**-10
# What the roundings of two random layers do to logits.
LOGIT_ERROR = 0.25
EIGHT = SamplingParams(max_tokens=8)


@pytest.mark.parametrize("spread", [0.0, 1.0, 3.0], ids=["even", "spread", "with outliers"])
@pytest.mark.parametrize("magnitude", [1e-20, 1.0, 1e20])
def test_numbers_are_within_half_a_step_of_float8(spread: float, magnitude: float) -> None:
    random = torch.Generator().manual_seed(0)
    rows = torch.randn(50, 300, generator=random) * magnitude
    rows *= torch.exp(spread * torch.randn(50, 300, generator=random))
    values, scales = quantised(rows, FP8)
    exact = rows.double() / scales
    assert values.double().abs().amax(1).tolist() == [LARGEST_FP8] * 50
    bound = torch.clamp(HALF_STEP * exact.abs(), min=SMALLEST_HALF_STEP) * (1 + 1e-5)
    assert ((values.double() - exact).abs() <= bound).all()


def test_a_row_of_zeros_stays_one_and_one_that_is_not_finite_has_such_a_scale() -> None:
    rows = torch.ones(4, 16)
    rows[0], rows[1, 3], rows[2, 5] = 0, torch.inf, torch.nan
    values, scales = quantised(rows, FP8)
    assert values[0].float().tolist() == [0.0] * 16
    assert scales.isfinite().flatten().tolist() == [True, False, False, True]
    product = TorchKernels().fp8.project(
        TorchKernels().fp8.quantise(rows), values[3:], scales[3:], None
    )
    assert product.isfinite().flatten().tolist() == [True, False, False, True]


def test_products_are_exact_but_for_the_roundings_of_their_factors() -> None:
    fp8 = TorchKernels().fp8
    random = torch.Generator().manual_seed(0)
    weight, scale = quantised(torch.randn(40, 96, generator=random), FP8)
    rows = fp8.quantise(torch.randn(7, 96, generator=random).bfloat16())
    bias = torch.randn(40, generator=random).bfloat16()
    expected = (rows.values.double() * rows.scales) @ (weight.double() * scale).T + bias
    actual = fp8.project(rows, weight, scale, bias)
    assert actual.dtype == torch.bfloat16
    torch.testing.assert_close(actual.double(), expected, rtol=2**-8, atol=1e-5)


@EVERY_FAMILY
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_logits_are_close_to_those_of_the_weights_as_they_are(
    tmp_path: Path, llm: Config, dtype: torch.dtype
) -> None:
    write_checkpoint(tmp_path, llm, random_tensors(llm))
    exact = _logits(_decoder(tmp_path, torch.float32, CPU, "none"))
    for step_token_count in (100, 3, 1):
        logits = _logits(_decoder(tmp_path, dtype, CPU, "fp8"), step_token_count)
        assert 1e-3 < _error(logits, exact) < LOGIT_ERROR


@pytest.mark.gpu
@EVERY_FAMILY
def test_logits_of_cuda_are_close_to_them_too(tmp_path: Path, llm: Config) -> None:
    """The roundings of a GPU do to a model what those of the emulation do to it."""
    # Every width a multiple of 16.
    wide = llm | {"hidden_size": 64, "intermediate_size": 96}
    if "head_dim" in llm:
        wide |= {"head_dim": 16}
    write_checkpoint(tmp_path, wide, random_tensors(wide))
    exact = _logits(_decoder(tmp_path, torch.float32, CPU, "none"))
    emulated = _logits(_decoder(tmp_path, torch.bfloat16, CPU, "fp8"))
    for step_token_count in (100, 3, 1):
        logits = _logits(_decoder(tmp_path, torch.bfloat16, CUDA, "fp8"), step_token_count)
        assert 0.8 < _error(logits, exact) / _error(emulated, exact) < 1.2


@EVERY_FAMILY
@pytest.mark.parametrize("step_token_count", [100, 3, 1])
def test_logits_are_those_of_weights_and_activations_rounded_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, llm: Config, step_token_count: int
) -> None:
    """The reference knows no scales beside its products: numbers are rounded where they are."""
    monkeypatch.setattr("llm_service.engines.torch.model_runner.compiled_decode", lambda *_: None)
    tensors = random_tensors(llm)
    write_checkpoint(tmp_path / "exact", llm, tensors)
    rounded = {
        name: _rounded(tensor) if tensor.dim() == 2 and ".layers." in name else tensor
        for name, tensor in tensors.items()
    }
    write_checkpoint(tmp_path / "rounded", llm, rounded)
    reference = _decoder(tmp_path / "rounded", torch.float32, CPU, "none")
    for module in reference.layers.modules():
        if isinstance(module, Projection):
            module.register_forward_pre_hook(lambda _, inputs: (_rounded(inputs[0]),))
    expected = _logits(reference, step_token_count)
    actual = _logits(_decoder(tmp_path / "exact", torch.float32, CPU, "fp8"), step_token_count)
    assert (actual - expected).norm() < 1e-5 * expected.norm()


def _rounded(rows: torch.Tensor) -> torch.Tensor:
    scales = rows.double().abs().amax(1, keepdim=True) / 448
    return ((rows.double() / scales).to(FP8).double() * scales).float()


def _error(logits: torch.Tensor, exact: torch.Tensor) -> float:
    return float((logits - exact).norm() / exact.norm())


def _decoder(
    folder: Path, dtype: torch.dtype, device: torch.device, quantization: Quantization
) -> Decoder:
    stored = stored_types(folder, device, dtype, quantization)
    return load_decoder(folder, LLMConfig.from_checkpoint(folder), device, dtype, stored)


def _logits(decoder: Decoder, step_token_count: int = 100) -> torch.Tensor:
    """Returns [8, vocabulary] float32: after the prompt, and after each of given next tokens."""
    runner = ModelRunner(decoder, block_count=64, block_size=4, max_running=2)
    scheduler = Scheduler(BlockManager(64, 4), step_token_count, 2)
    sequence = Sequence(Prompt(TOKEN_IDS, NO_ROWS), SamplingParams(), 8, vocabulary_size=61)
    scheduler.add(sequence)
    rows: list[torch.Tensor] = []
    while len(rows) < 8:
        scheduled = scheduler.schedule()
        inputs = runner.inputs(scheduled)
        logits = runner.logits(inputs)
        sequence.mark_launched()
        if inputs.sampled:
            rows.append(logits[0].float().cpu())
            sequence.append((7 * len(rows)) % 50)
    return torch.stack(rows)


@EVERY_FAMILY
def test_only_the_layers_are_quantised_and_the_memory_is_known(tmp_path: Path, llm: Config) -> None:
    tensors = {name: tensor.bfloat16() for name, tensor in random_tensors(llm).items()}
    write_checkpoint(tmp_path, llm, tensors)
    stored = stored_types(tmp_path, CPU, torch.float32, "fp8")
    assert stored == StoredTypes(FP8, torch.bfloat16, torch.bfloat16)
    decoder = _decoder(tmp_path, torch.float32, CPU, "fp8")
    projections = [it for it in decoder.layers.modules() if isinstance(it, Projection)]
    assert {it.weight.dtype for it in projections} == {FP8}
    assert decoder.head.scale is None
    weights = [*(it.weight for it in projections), decoder.head.weight, decoder.embedding.weight]
    config = LLMConfig.from_checkpoint(tmp_path)
    assert weight_byte_count(config, 1, 2, 2) == sum(weight.nbytes for weight in weights)


async def test_an_engine_on_a_cpu_answers_by_emulation_alone_and_beside_others(
    tmp_path: Path,
) -> None:
    checkpoint = await asyncio.to_thread(write_checkpoint, tmp_path, QWEN2, random_tensors(QWEN2))
    engine = await asyncio.to_thread(_started, checkpoint)
    prompts = [Prompt([*TOKEN_IDS, last], NO_ROWS) for last in (3, 30, 50)]
    alone = [await tokens_of(engine, EIGHT, prompt) for prompt in prompts]
    assert await asyncio.gather(*(tokens_of(engine, EIGHT, it) for it in prompts)) == alone
    await engine.close()


@pytest.mark.gpu
async def test_an_engine_on_a_gpu_answers_as_the_emulation_does(tmp_path: Path) -> None:
    """The first tokens: later ones may differ, since sums are rounded in another order."""
    llm = QWEN2 | {"hidden_size": 64, "num_hidden_layers": 1}
    checkpoint = await asyncio.to_thread(write_checkpoint, tmp_path, llm, random_tensors(llm))
    answers = []
    for device in ("cpu", "cuda"):
        engine = await asyncio.to_thread(_started, checkpoint, device=device, dtype="bfloat16")
        prompts = [Prompt([*TOKEN_IDS, last], torch.empty(0, 64)) for last in range(40)]
        answers.append(
            await asyncio.gather(
                *(tokens_of(engine, SamplingParams(max_tokens=1), it) for it in prompts)
            )
        )
        await engine.close()
    equal = sum(ours == theirs for ours, theirs in zip(*answers, strict=True))
    assert equal >= 34


@pytest.mark.gpu
def test_a_load_needs_little_more_than_what_stays(tmp_path: Path) -> None:
    llm = QWEN2 | {"hidden_size": 1024, "intermediate_size": 8192, "num_hidden_layers": 8}
    write_checkpoint(tmp_path, llm, random_tensors(llm))
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    decoder = _decoder(tmp_path, torch.bfloat16, CUDA, "fp8")
    stays = sum(parameter.nbytes for parameter in decoder.parameters())
    largest = 4 * 1024 * 8192  # a tensor in float32, of which four copies are rounded
    assert torch.cuda.max_memory_allocated() - before < stays + 4 * largest


def _started(checkpoint: Path, **options: Any) -> LLMEngine:
    given = {
        "checkpoint": checkpoint,
        "torch": {"device": "cpu", "dtype": "float32", "thread_count": 1, "quantization": "fp8"}
        | options,
        "kv_cache_byte_count": 2**20,
    }
    settings = Settings.model_validate(given)
    return create_engine(settings, LLMConfig.from_checkpoint(checkpoint), tiny_tokenizer())


def test_a_start_finds_what_is_none_in_the_checkpoint(tmp_path: Path) -> None:
    name = "language_model.model.layers.1.mlp.down_proj.weight"
    for number, words in ((torch.nan, "holds NaN"), (torch.inf, "is not finite in float32")):
        tensors = random_tensors(QWEN2)
        tensors[name][3, 4] = number
        with pytest.raises(EngineStartError, match=f"the checkpoint's {name} {words}"):
            _started(write_checkpoint(tmp_path, QWEN2, tensors))


@pytest.mark.parametrize(
    ("quantization", "device", "dtype", "capability", "sizes", "sentence"),
    [
        ("int8", CUDA, torch.bfloat16, (9, 0), {}, "quantization is int8, with which a CPU alone"),
        ("int8", CPU, torch.float16, None, {}, "dtype is float16, in which sums of int8 numbers"),
        ("fp8", CUDA, torch.bfloat16, (8, 6), {}, "the GPU has compute capability 8.6, and 8.9"),
        ("fp8", CUDA, torch.float16, (8, 9), {}, "dtype is float16, but a GPU's products in fp8"),
        ("fp8", CUDA, torch.float32, (9, 0), {}, "dtype is float32, but a GPU's products in fp8"),
        ("fp8", CUDA, torch.bfloat16, (9, 0), {"intermediate_size": 40}, "multiples of 16 rows"),
    ],
)
def test_what_a_device_does_not_compute_is_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    quantization: Quantization,
    device: torch.device,
    dtype: torch.dtype,
    capability: tuple[int, int] | None,
    sizes: Config,
    sentence: str,
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    llm = QWEN2 | {"hidden_size": 64} | sizes
    write_checkpoint(tmp_path, llm, random_tensors(llm))
    config = LLMConfig.from_checkpoint(tmp_path)
    with pytest.raises(EngineStartError, match=sentence):
        check_quantization(quantization, config, device, dtype)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    fitting = LLMConfig.from_checkpoint(
        write_checkpoint(tmp_path, QWEN2 | {"hidden_size": 64}, {"x": torch.ones(1)})
    )
    check_quantization("fp8", fitting, CUDA, torch.bfloat16)
