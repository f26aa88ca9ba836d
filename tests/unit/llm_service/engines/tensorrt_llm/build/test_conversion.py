"""Converted checkpoints against the torch engine: the same logits however they are split."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from llm_service.checkpoint import LLMConfig
from llm_service.engines.base import Prompt
from llm_service.engines.tensorrt_llm.build import source
from llm_service.engines.tensorrt_llm.build.conversion import convert
from llm_service.engines.tensorrt_llm.build.target import BuildError, Target
from llm_service.engines.torch.block_manager import BlockManager
from llm_service.engines.torch.model_runner import ModelRunner
from llm_service.engines.torch.scheduler import Scheduler
from llm_service.engines.torch.sequence import Sequence
from llm_service.engines.torch.weights import load_decoder
from llm_service.sampling import SamplingParams
from protos.checkpoint.section import CheckpointError
from tests.unit.llm_service.engines.tensorrt_llm.build.split_model import SplitModel
from tests.unit.llm_service.engines.torch.tiny import (
    EVERY_FAMILY,
    QWEN2,
    Config,
    random_tensors,
    write_checkpoint,
    write_config,
)

Tensors = dict[str, torch.Tensor]

TABLE = torch.randn(5, 32, generator=torch.Generator().manual_seed(7))
# Five virtual tokens between text, and text alone.
PROMPTS = [[11, 61, 62, 63, 64, 65, 12, 13], [3, 1, 4, 1, 5, 9, 2, 6, 5, 35, 8, 9, 7]]
QUERIES = "language_model.model.layers.1.self_attn.q_proj.weight"


def _checkpoint(folder: Path, llm: Config) -> Path:
    """Weights that bfloat16 holds exactly, so that converting them loses nothing."""
    tensors = {name: tensor.bfloat16().float() for name, tensor in random_tensors(llm).items()}
    return write_checkpoint(folder / "original", llm, tensors)


def _convert(checkpoint: Path, target: Target | None = None) -> Path:
    converted = checkpoint.parent / "converted"
    convert(checkpoint, converted, target or Target(), io.StringIO())
    return converted


def _engine_logits(checkpoint: Path, token_ids: list[int]) -> torch.Tensor:
    config = LLMConfig.from_checkpoint(checkpoint)
    decoder = load_decoder(checkpoint, config, torch.device("cpu"), torch.float32)
    runner = ModelRunner(decoder, 64, 4, max_running=1)
    scheduler = Scheduler(BlockManager(64, 4), 100, 1)
    scheduler.add(Sequence(Prompt(token_ids, TABLE), SamplingParams(), 6, config.vocabulary_size))
    return runner.logits(runner.inputs(scheduler.schedule()))[0]


@EVERY_FAMILY
@pytest.mark.parametrize("pp", [1, 2])
@pytest.mark.parametrize("tp", [1, 2, 4])
def test_logits_equal_those_of_the_torch_engine(
    tmp_path: Path, llm: Config, tp: int, pp: int
) -> None:
    checkpoint = _checkpoint(tmp_path, llm)
    model = SplitModel(_convert(checkpoint, Target(tp=tp, pp=pp)))
    for token_ids in PROMPTS:
        expected = _engine_logits(checkpoint, token_ids)
        torch.testing.assert_close(model.logits(token_ids, TABLE), expected, rtol=0, atol=2e-5)


@EVERY_FAMILY
def test_reading_a_few_rows_at_a_time_gives_the_same_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, llm: Config
) -> None:
    checkpoint = _checkpoint(tmp_path, llm)
    target = Target(tp=2)
    whole = _convert(checkpoint, target).rename(tmp_path / "whole")
    monkeypatch.setattr(source, "READ_VALUE_COUNT", 3 * 32)
    for file in _convert(checkpoint, target).iterdir():
        assert file.read_bytes() == (whole / file.name).read_bytes()


def test_float16_weights_are_rounded_once(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "original", QWEN2, random_tensors(QWEN2))
    tensors = load_file(_convert(checkpoint, Target(dtype="float16")) / "rank0.safetensors")
    head = load_file(checkpoint / "model.safetensors")["language_model.lm_head.weight"]
    torch.testing.assert_close(tensors["lm_head.weight"], head.half(), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("quantization", "name"), [("none", None), ("w8a16", "W8A16"), ("w4a16", "W4A16")]
)
def test_quantization_is_declared_and_weights_stay_as_they_are(
    tmp_path: Path, quantization: Any, name: str | None
) -> None:
    llm = QWEN2 | {"hidden_size": 64, "intermediate_size": 128}
    converted = _convert(_checkpoint(tmp_path, llm), Target(quantization=quantization))
    declared = SplitModel(converted).document["quantization"]
    assert declared == {"quant_algo": name, "kv_cache_quant_algo": None}


def test_progress_ends_at_all_of_it(tmp_path: Path) -> None:
    stream = io.StringIO()
    convert(_checkpoint(tmp_path, QWEN2), tmp_path / "converted", Target(), stream)
    assert stream.getvalue().endswith("converted: 100% of 0 MiB\n")


def _refused(checkpoint: Path, error: type[Exception], sentence: str, target: Target) -> None:
    """Converts in vain: no trace of it may stay."""
    before = set(checkpoint.parent.iterdir())
    with pytest.raises(error, match=sentence):
        _convert(checkpoint, target)
    assert set(checkpoint.parent.iterdir()) == before


def _without_queries(tensors: Tensors) -> Tensors:
    return {name: tensor for name, tensor in tensors.items() if name != QUERIES}


SPOILED: dict[str, tuple[Callable[[Tensors], Tensors], str]] = {
    "missing": (_without_queries, f"lacks the tensor {QUERIES}"),
    "unknown": (
        lambda t: t | {f"{QUERIES}_2": t[QUERIES].clone()},
        "unexpected tensor .*weight_2",
    ),
    "quantised": (
        lambda t: t | {f"{QUERIES}_scale": t[QUERIES].clone()},
        "weight_scale is of a quantised checkpoint",
    ),
    "shape": (
        lambda t: t | {QUERIES: t[QUERIES][:3].clone()},
        r"q_proj.weight is F32 \[3, 32\]; config.json asks for floats \[32, 32\]",
    ),
    "type": (lambda t: t | {QUERIES: t[QUERIES].to(torch.int8)}, r"q_proj.weight is I8"),
}


@pytest.mark.parametrize("how", SPOILED)
def test_a_checkpoint_that_is_not_the_configs_is_refused(tmp_path: Path, how: str) -> None:
    spoil, sentence = SPOILED[how]
    checkpoint = write_checkpoint(tmp_path / "original", QWEN2, spoil(random_tensors(QWEN2)))
    _refused(checkpoint, CheckpointError, sentence, Target())


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    checkpoint = _checkpoint(tmp_path, QWEN2)
    (checkpoint / "model.safetensors").write_bytes(b"not tensors")
    _refused(checkpoint, CheckpointError, "model.safetensors is damaged", Target())


def test_a_weight_beyond_float16_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    tensors = random_tensors(QWEN2)
    tensors["language_model.lm_head.weight"][60, 31] = 70_000
    checkpoint = write_checkpoint(tmp_path / "original", QWEN2, tensors)
    sentence = r"lm_head.weight has weights beyond float16 \(70000\): use bfloat16"
    _refused(checkpoint, BuildError, sentence, Target(dtype="float16"))


def test_a_split_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    checkpoint = write_config(tmp_path / "original", QWEN2)
    _refused(checkpoint, BuildError, "--tp 3 must divide 4 attention heads", Target(tp=3))


def test_an_existing_folder_is_never_written_to(tmp_path: Path) -> None:
    checkpoint = _checkpoint(tmp_path, QWEN2)
    (tmp_path / "converted").mkdir()
    _refused(checkpoint, BuildError, "converted exists; remove it or choose another", Target())


def test_what_a_killed_conversion_left_is_named(tmp_path: Path) -> None:
    checkpoint = _checkpoint(tmp_path, QWEN2)
    (tmp_path / ".converted.unfinished").mkdir()
    _refused(checkpoint, BuildError, "unfinished is of a conversion that still runs", Target())


def test_a_full_disk_is_refused_before_the_first_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = _checkpoint(tmp_path, QWEN2)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1024))
    _refused(checkpoint, BuildError, "has 0 MiB free; the checkpoint takes 0 MiB", Target())


def test_the_index_names_the_files(tmp_path: Path) -> None:
    """A checkpoint cut into files gives what one file gives."""
    checkpoint = _checkpoint(tmp_path, QWEN2)
    whole = _convert(checkpoint).rename(tmp_path / "whole")
    _cut_in_two(checkpoint)
    for file in _convert(checkpoint).iterdir():
        assert file.read_bytes() == (whole / file.name).read_bytes()


def _cut_in_two(checkpoint: Path) -> None:
    single = checkpoint / "model.safetensors"
    tensors = load_file(single)
    names = sorted(tensors)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, own in parts.items():
        save_file({name: tensors[name] for name in own}, checkpoint / file)
    index = {"weight_map": {name: file for file, own in parts.items() for name in own}}
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps(index))
    single.unlink()
