"""The engine benchmarks on tiny models: every part ends and has its figures.

They are run on rented machines, where a misspelt name costs more than here.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from gateway.local.stack import Stack
from llm_service.checkpoint import LLMConfig
from protos.checkpoint.weight_files import weight_files
from tests import random_checkpoint
from tests.benchmarks import cpu_threads, engine_cpu, engine_cuda, engine_host, fp8_accuracy
from tests.benchmarks.prompts import LENGTH_SPREAD, Prompts
from tests.random_checkpoint import write_random_checkpoint
from tests.served_model import CUSTOMERS_MODEL

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
TINY = ["--device", "cpu", "--tiny"]
ONE_PROCESS_PARTS = ["decode", "prefill", "turns", "host", "beside", "offload", "transformers"]


def test_engine_cpu_on_a_tiny_model() -> None:
    sizes = engine_cpu.Sizes(
        prompt_token_count=8,
        output_token_count=3,
        output_repeat_count=1,
        user_count=2,
        user_prompt_token_count=4,
        user_output_token_count=2,
        user_repeat_count=1,
        row_count=4,
        answer_token_count=2,
        turn_repeat_count=1,
    )
    model = engine_cpu.Model("tiny", _tiny_checkpoint, sizes)
    report = engine_cpu.measure_models([model], lambda _: None)
    figures = ("ms per output token", "ms to the first token, 8", "tokens/s", "ms to the first")
    expected = [f"tiny, {dtype}: {figure}" for dtype in engine_cpu.DTYPES for figure in figures]
    assert len(report.rows) == len(expected)
    for row, start in zip(report.rows, expected, strict=True):
        assert row[0].startswith(start)
        assert all(float(cell) >= 0 for cell in row[1:4])


@pytest.mark.slow
def test_cpu_threads_asks_all_stacks(served: Stack) -> None:
    sizes = cpu_threads.Sizes(edge=112, token_count=3, user_counts=(2,), round_count=1)
    stacks = {"one": served, "other": served}
    report = cpu_threads.measure_stacks(CUSTOMERS_MODEL, stacks, sizes, lambda _: None)
    assert [row[0] for row in report.rows] == ["one, 2", "other, 2"]
    assert all(float(cell) > 0 for row in report.rows for cell in row[1:])
    assert [len(seconds["first"]) for seconds in report.seconds.values()] == [2, 2]


def test_a_variants_variables_reach_its_services_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str | None] = []
    monkeypatch.setattr(Stack, "start", lambda _: seen.append(os.environ.get("GOMP_SPINCOUNT")))
    variant = cpu_threads.Variant("short", ("--torch.dtype", "float32"), {"GOMP_SPINCOUNT": "7"})
    with cpu_threads.open_stack(tmp_path, variant) as stack:
        assert all(each.arguments[-2:] == [*variant.options] for each in stack.services[:2])
    assert (seen, os.environ.get("GOMP_SPINCOUNT")) == (["7"], None)


@pytest.mark.slow
@pytest.mark.parametrize(
    "shape", ["8B", *(pytest.param(shape, marks=pytest.mark.slow) for shape in ("1B", "3.5-8B"))]
)
def test_engine_cuda_in_one_process(tmp_path: Path, shape: str) -> None:
    out = ["--out", str(tmp_path), "--shape", shape]
    assert engine_cuda.main([*TINY, *out, "--part", *ONE_PROCESS_PARTS]) == 0
    assert len(_parts(tmp_path)) == len(ONE_PROCESS_PARTS) + 2  # the host's are two, as offload's


def test_engine_cuda_in_float8_has_a_name_of_its_own(tmp_path: Path) -> None:
    out = ["--out", str(tmp_path), "--part", "prefill", "--quantization", "fp8"]
    assert engine_cuda.main([*TINY, *out]) == 0
    assert [*_parts(tmp_path)] == ["8B in fp8 prefill, milliseconds to the first token"]


@pytest.mark.slow
def test_float8_is_compared_on_golden_prompts(tmp_path: Path) -> None:
    fp8_accuracy.main(["--out", str(tmp_path)])
    (report,) = json.loads((tmp_path / "fp8_accuracy.json").read_text()).values()
    rows = [line.strip("| ").split("|") for line in report["table"].splitlines()[2:]]
    assert [row[0].strip() for row in rows] == ["tiny-qwen2", "tiny-internlm2"]
    for _, tokens, mean, largest, flat, same in rows:
        assert int(tokens) == 3 * 17
        assert 0 < float(mean) < float(largest) < float(flat)
        assert 50 < float(same.strip().rstrip("%")) < 100


@pytest.mark.slow
def test_parts_that_run_apart_are_joined_and_the_checkpoint_is_kept(tmp_path: Path) -> None:
    out = ["--out", str(tmp_path / "out"), "--checkpoints", str(tmp_path / "kept")]
    for part in ("prefill", "turns"):
        assert engine_cuda.main([*TINY, *out, "--part", part]) == 0
    assert [*_parts(tmp_path / "out")] == [
        "8B prefill, milliseconds to the first token",
        "8B turns about 32 rows, milliseconds to the first token",
    ]
    assert (tmp_path / "kept" / "random-8B" / "config.json").is_file()


def test_lengths_are_new_and_on_average_the_one_they_are_around() -> None:
    config = LLMConfig.from_checkpoint(GOLDEN / "tiny-qwen2")
    lengths = Prompts(config, torch.bfloat16, 1).lengths(1300, 11)
    assert len(set(lengths)) == len(lengths) == 22
    assert 1300 not in lengths
    assert sum(lengths) == 1300 * 22
    assert min(lengths) >= 1300 - LENGTH_SPREAD
    assert Prompts(config, torch.bfloat16, 1).lengths(1300, 11) == lengths


def test_a_failed_part_is_counted_and_the_next_one_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    async def fail(_: object) -> list[object]:
        raise ValueError("2 steps are missing")

    monkeypatch.setitem(engine_cuda.ENGINE_PARTS, "decode", fail)
    out = ["--out", str(tmp_path), "--part", "decode", "prefill"]
    assert engine_cuda.main([*TINY, *out]) == 1
    assert len(_parts(tmp_path)) == 1
    printed = capfd.readouterr()
    assert "failed: 8B decode" in printed.out
    assert "2 steps are missing" in printed.err


def test_engine_host_has_every_stage_of_all_kinds(tmp_path: Path) -> None:
    engine_host.main(["--out", str(tmp_path), "--batch", "1", "3", "--seconds", "0.1"])
    (part,) = json.loads((tmp_path / "engine_host.json").read_text()).values()
    _, _, *rows = [line.strip("| ").split(" | ") for line in part["table"].split("\n")]
    cases = [f"{size} {kind}" for kind in engine_host.KINDS for size in (1, 3)]
    assert [row[0].strip() for row in rows] == cases
    assert all(float(cell) >= 0 for row in rows for cell in row[1:])
    assert all(float(row[3]) > 0 for row in rows)  # the host's time


def test_a_checkpoint_in_several_files_holds_the_same_tensors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_random_checkpoint(tmp_path / "one")
    monkeypatch.setattr(random_checkpoint, "SHARD_BYTE_COUNT", 100_000)
    write_random_checkpoint(tmp_path / "several")
    (file,), files = weight_files(tmp_path / "one"), weight_files(tmp_path / "several")
    assert len(files) > 2
    whole, parts = load_file(file), [load_file(part) for part in files]
    joined = {name: tensor for part in parts for name, tensor in part.items()}
    assert len(joined) == sum(map(len, parts))
    assert joined.keys() == whole.keys()
    assert all(torch.equal(joined[name], tensor) for name, tensor in whole.items())


def _parts(folder: Path) -> dict[str, object]:
    parts: dict[str, object] = json.loads((folder / "engine_cuda.json").read_text())
    return parts


def _tiny_checkpoint(folder: Path) -> Path:
    write_random_checkpoint(folder)
    return folder
