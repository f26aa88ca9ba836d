"""Our decoders against transformers' on the same random weights: logits in every batching."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from llm_service.checkpoint import LLMConfig
from llm_service.engines.base import Prompt
from llm_service.engines.torch import step_graphs, weights
from llm_service.engines.torch.block_manager import BlockManager
from llm_service.engines.torch.model_runner import ModelRunner
from llm_service.engines.torch.scheduler import Scheduler
from llm_service.engines.torch.sequence import Sequence
from llm_service.engines.torch.weights import load_decoder
from llm_service.sampling import SamplingParams
from tests.unit.llm_service.engines.torch.replays import TiledKernels, replayed
from tests.unit.llm_service.engines.torch.tiny import (
    EVERY_FAMILY,
    QWEN2,
    Config,
    random_tensors,
    write_checkpoint,
)

Tensors = dict[str, torch.Tensor]

# transformers itself has no InternLM2, which is a Llama but for its names.
REFERENCES: dict[str, tuple[type[PreTrainedConfig], Callable[..., PreTrainedModel]]] = {
    "InternLM2ForCausalLM": (LlamaConfig, LlamaForCausalLM),
    "LlamaForCausalLM": (LlamaConfig, LlamaForCausalLM),
    "Qwen2ForCausalLM": (Qwen2Config, Qwen2ForCausalLM),
    "Qwen3ForCausalLM": (Qwen3Config, Qwen3ForCausalLM),
}
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
    _compare_logits(_runner(tmp_path, llm, tensors), _reference(llm, tensors), max_batch_tokens)


@EVERY_FAMILY
@pytest.mark.parametrize("max_batch_tokens", [100, 20, 7])
@pytest.mark.parametrize("large_step_token_count", [21, 1000])
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
    _compare_logits(runner, _reference(llm, tensors), max_batch_tokens)
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
    _compare_logits(runner, _reference(llm, tensors), max_batch_tokens, tolerance=1e-4)


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
    expected = _reference_logits(_reference(QWEN2, tensors), TOKEN_IDS[2])
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


def _reference(llm: Config, tensors: Tensors) -> torch.nn.Module:
    ours = ("architectures", "rope_scaling", "bias")
    options = {key: value for key, value in llm.items() if key not in ours}
    options["rope_parameters"] = {"rope_type": "default", "rope_theta": options.pop("rope_theta")}
    options["tie_word_embeddings"] = False
    config_class, model_class = REFERENCES[llm["architectures"][0]]
    model = model_class(config_class(**options))
    renamed = {name.removeprefix("language_model."): t for name, t in tensors.items()}
    if llm["architectures"] == ["InternLM2ForCausalLM"]:
        renamed = _llama_tensors(llm, tensors)
    model.load_state_dict(renamed)
    model.train(False)
    return model


def _llama_tensors(llm: Config, tensors: Tensors) -> Tensors:
    """InternLM2's tensors under Llama's names, wqkv taken apart group by group."""
    names = {
        "model.tok_embeddings": "model.embed_tokens",
        "output.weight": "lm_head.weight",
        "attention.wo": "self_attn.o_proj",
        "attention_norm": "input_layernorm",
        "ffn_norm": "post_attention_layernorm",
        "feed_forward.w1": "mlp.gate_proj",
        "feed_forward.w2": "mlp.down_proj",
        "feed_forward.w3": "mlp.up_proj",
    }
    renamed: Tensors = {}
    for name, tensor in tensors.items():
        new = name.removeprefix("language_model.")
        if "wqkv" in new:
            for letter, part in _split_wqkv(llm, tensor).items():
                renamed[new.replace("attention.wqkv", f"self_attn.{letter}_proj")] = part
            continue
        for old_part, new_part in names.items():
            new = new.replace(old_part, new_part)
        renamed[new] = tensor
    return renamed


def _split_wqkv(llm: Config, wqkv: torch.Tensor) -> Tensors:
    heads, kv_heads = llm["num_attention_heads"], llm["num_key_value_heads"]
    group, width = heads // kv_heads, llm["hidden_size"] // heads
    parts: dict[str, list[torch.Tensor]] = {"q": [], "k": [], "v": []}
    for kv_head in range(kv_heads):
        first = kv_head * (group + 2) * width
        key, value = first + group * width, first + (group + 1) * width
        parts["q"].append(wqkv[first:key])
        parts["k"].append(wqkv[key:value])
        parts["v"].append(wqkv[value : value + width])
    return {letter: torch.cat(rows) for letter, rows in parts.items()}


def _reference_logits(model: torch.nn.Module, token_ids: list[int]) -> torch.Tensor:
    """Returns the logits after all tokens, computed at once and without a cache."""
    embedding = model.get_submodule("model.embed_tokens").weight
    assert isinstance(embedding, torch.Tensor)
    embedded = torch.stack([torch.cat([embedding, TABLE])[token_id] for token_id in token_ids])
    with torch.inference_mode():
        logits: torch.Tensor = model(inputs_embeds=embedded[None]).logits[0, -1]
    return logits
