"""The self-test: torch against torch, TensorRT-LLM's double against torch, and what it finds."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path

import pytest

from llm_service import selftest
from llm_service.checkpoint import LLMConfig
from tests.random_checkpoint import write_random_checkpoint
from tests.unit.llm_service.engines.tensorrt_llm.engine_folders import (
    engine_document,
    write_engine_folder,
)


def write_checkpoint(folder: Path, seed: int = 0) -> Path:
    write_random_checkpoint(folder, seed=seed)
    return folder


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "checkpoint")


def run(monkeypatch: pytest.MonkeyPatch, checkpoint: Path, *words: str) -> None:
    options = ("--reference-dtype", "float32", "--answer-token-count", "4")
    words = ("selftest", "--checkpoint", str(checkpoint), *options, *words)
    monkeypatch.setattr(sys, "argv", list(words))
    selftest.main()


def engine_options(tmp_path: Path, checkpoint: Path, weights: Path) -> tuple[str, ...]:
    document = engine_document(LLMConfig.from_checkpoint(checkpoint))
    folder = write_engine_folder(tmp_path / "engine", document, weights)
    options = ("--engine", "tensorrt_llm", "--tensorrt-llm.engine-folder", str(folder))
    return (*options, "--tensorrt-llm.max-request-tile-count", "12")


def test_torch_agrees_with_itself(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], checkpoint: Path
) -> None:
    run(monkeypatch, checkpoint, "--torch.dtype", "float32")
    lines = capsys.readouterr().out.splitlines()
    for line, image_count in zip(lines, (0, 0, 1, 2), strict=False):
        pattern = rf"torch: {image_count} image\(s\), first token after [\d.]+ ms, then .+"
        assert re.fullmatch(pattern, line)
    found = re.fullmatch(r"(\d+) of \1 tokens agree with the torch engine's", lines[-2])
    assert found is not None
    assert 4 <= int(found[1]) <= 16
    assert lines[-1] == "passed"


def test_the_engine_of_the_same_weights_passes(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    checkpoint: Path,
) -> None:
    run(monkeypatch, checkpoint, *engine_options(tmp_path, checkpoint, checkpoint))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("tensorrt_llm: 0 image(s)")
    assert lines[-1] == "passed"


def test_the_engine_of_other_weights_fails(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, checkpoint: Path
) -> None:
    other = write_checkpoint(tmp_path / "other", seed=1)
    with pytest.raises(SystemExit, match=r"FAILED: [\d.]+% is less than --least-agreement"):
        run(monkeypatch, checkpoint, *engine_options(tmp_path, checkpoint, other))


def test_another_rank_needs_no_reference(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    checkpoint: Path,
) -> None:
    double = importlib.import_module("tensorrt_llm.bindings.executor")
    monkeypatch.setattr(double.mpi, "rank", 1)
    double.mpi.leader_is_gone.set()
    with pytest.raises(SystemExit) as caught:
        run(monkeypatch, checkpoint, *engine_options(tmp_path, checkpoint, checkpoint))
    assert caught.value.code == 0
    assert capsys.readouterr().out == ""


def test_a_checkpoint_that_is_none_is_a_sentence(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(SystemExit, match=r"config\.json"):
        run(monkeypatch, tmp_path)
