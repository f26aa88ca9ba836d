"""What keeps the service from starting is one sentence on one line, and exit status 1."""

from __future__ import annotations

import json
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from structlog.testing import capture_logs

from llm_service.__main__ import embedding_key, load, main
from llm_service.engines.base import LLMEngine
from llm_service.model import ModelInfo
from llm_service.settings import Settings
from protos.process.memory import FreeMemory
from tests.random_checkpoint import write_random_checkpoint

OUTSIDE = "192.0.2.1"  # an address that no machine has
without_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA is there")


@pytest.fixture(autouse=True)
def _switch_interval() -> Iterator[None]:
    """Takes back what the service sets for its process: here it is that of all tests."""
    before = sys.getswitchinterval()
    yield
    sys.setswitchinterval(before)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("start") / "random"
    write_random_checkpoint(folder)
    return folder


def sentence_of_failure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str
) -> str:
    """Starts the service, which must fail; returns the sentence."""
    monkeypatch.setattr(sys, "argv", ["internvl-llm", "--port", "0", *words])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("{")]
    (event,) = [event for event in map(json.loads, lines) if event["level"] == "error"]
    assert event["event"] == "start_failed"
    sentence: str = event["error"]
    assert "\n" not in sentence
    return sentence


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--kv-cache-byte-count", "100"], "the KV cache has 100 bytes, and one block needs"),
        (["--kv-cache-byte-count", str(10**17)], "too little memory: the weights take 0.2 MiB in "),
        (["--torch.block-size", str(10**20)], "one block needs"),
        pytest.param(["--torch.device", "cuda"], "finds no CUDA device", marks=without_cuda),
        (
            ["--host", OUTSIDE],
            f"cannot listen on {OUTSIDE}:0: Cannot assign requested address",
        ),
        (["--host", OUTSIDE, "--metrics-port", "0"], f"cannot serve metrics on {OUTSIDE}:0"),
        (
            ["--engine", "tensorrt_llm", "--tensorrt-llm.engine-folder", "/nowhere"],
            "TensorRT-LLM cannot be imported",
        ),
    ],
)
def test_what_this_machine_does_not_allow(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    checkpoint: Path,
    words: list[str],
    sentence: str,
) -> None:
    told = sentence_of_failure(monkeypatch, capsys, "--checkpoint", str(checkpoint), *words)
    assert sentence in told


@pytest.mark.parametrize(
    ("free", "words", "sentence"),
    [
        (
            2**20,
            ["--kv-cache-byte-count", str(3 * 2**30)],
            "there is too little memory: the weights take 0.2 MiB in bfloat16, the KV cache"
            " 3.0 GiB; 1.0 MiB are free here. What helps: --kv-cache-byte-count of less than"
            " 832512, or --torch.dtype bfloat16, which halves the KV cache, or a smaller model",
        ),
        (
            1000,
            ["--torch.dtype", "bfloat16"],
            "there is too little memory: the weights take 0.2 MiB in bfloat16; 0.0 MiB are free"
            " here. What helps: --quantization int8, which halves all weights but the embedding,"
            " or a smaller model",
        ),
        (
            1000,
            ["--torch.dtype", "bfloat16", "--quantization", "fp8"],
            "there is too little memory: the weights take 0.1 MiB in float8_e4m3fn; 0.0 MiB are"
            " free here. What helps: a smaller model",
        ),
    ],
)
def test_too_little_memory_is_seen_before_anything_is_loaded(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    checkpoint: Path,
    free: int,
    words: list[str],
    sentence: str,
) -> None:
    monkeypatch.setattr(
        "llm_service.engines.torch.start_memory.free_host_memory",
        lambda: FreeMemory(free, "are free here"),
    )
    monkeypatch.setattr("llm_service.engines.torch.launch.load_decoder", pytest.fail)
    words = ["--checkpoint", str(checkpoint), "--torch.device", "cpu", *words]
    told = sentence_of_failure(monkeypatch, capsys, "--torch.dtype", "float32", *words)
    assert told == sentence


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 20.00 GiB."),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory:\nbacktrace"),
        MemoryError(),
        OSError(12, "Cannot allocate memory"),
    ],
    ids=["gpu", "host", "python", "mapping"],
)
@pytest.mark.parametrize("place", ["launch.load_decoder", "launch.ModelRunner"])
def test_memory_that_turns_out_to_be_too_little(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    checkpoint: Path,
    place: str,
    error: Exception,
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(f"llm_service.engines.torch.{place}", fail)
    told = sentence_of_failure(monkeypatch, capsys, "--checkpoint", str(checkpoint))
    assert told.startswith("there is too little memory: the weights take 0.2 MiB in bfloat16")


def test_a_port_that_is_taken(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], checkpoint: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        words = ("--checkpoint", str(checkpoint), "--metrics-port", port)
        assert "already in use" in sentence_of_failure(monkeypatch, capsys, *words)


def test_what_fails_after_the_start_ends_the_engine_too(
    monkeypatch: pytest.MonkeyPatch, checkpoint: Path
) -> None:
    """Its thread would keep the process, which then neither serves nor ends."""

    def fail(_: LLMEngine) -> None:
        raise ValueError("metrics of one name")

    monkeypatch.setattr("llm_service.__main__.Metrics", fail)
    monkeypatch.setattr(sys, "argv", ["internvl-llm", "--checkpoint", str(checkpoint)])
    before = set(threading.enumerate())
    with pytest.raises(ValueError, match="metrics of one name"):
        main()
    for thread in set(threading.enumerate()) - before:  # once it has done what it is at
        thread.join(timeout=20)
    assert set(threading.enumerate()) <= before


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_checkpoint_that_lacks_a_file_or_has_a_damaged_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str
) -> None:
    write_random_checkpoint(tmp_path / "random")
    file = tmp_path / "random" / name
    words = ("--checkpoint", str(tmp_path / "random"))
    file.write_text("{")
    assert str(tmp_path) in sentence_of_failure(monkeypatch, capsys, *words)
    file.unlink()
    assert str(tmp_path) in sentence_of_failure(monkeypatch, capsys, *words)


def test_the_kind_of_a_checkpoint_is_told_before_what_its_config_lacks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "argv", ["internvl-llm", "--checkpoint", "lab/Tiny-2B"])
    with pytest.raises(SystemExit, match="2"):
        main()
    told = capsys.readouterr().err
    assert told.endswith("`hf download lab/Tiny-2B` fetches it\n")
    (tmp_path / "config.json").write_text('{"model_type": "internvl", "text_config": {}}')
    told = sentence_of_failure(monkeypatch, capsys, "--checkpoint", str(tmp_path))
    assert told.startswith(f"{tmp_path}/config.json: model_type is 'internvl', that of a conv")


def test_kinds_of_checkpoints_that_are_not_served(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    write_random_checkpoint(tmp_path)
    weights = tmp_path / "model.safetensors"
    tensors = load_file(weights)
    words = ("--checkpoint", str(tmp_path))
    for name, kind in (
        ("language_model.base_model.model.lm_head.weight", "a LoRA that is not merged"),
        ("language_model.model.layers.0.mlp.up_proj.qweight", "a quantised checkpoint"),
    ):
        save_file({**tensors, name: torch.zeros(1)}, weights)
        told = sentence_of_failure(monkeypatch, capsys, *words)
        assert told.startswith(f"{tmp_path}: {name} is of {kind}")
    (tmp_path / "tokenizer.model").write_text("version https://git-lfs.github.com/spec/v1\n")
    told = sentence_of_failure(monkeypatch, capsys, *words)
    assert told.startswith(f"{tmp_path}/tokenizer.model is a git-lfs pointer")


@pytest.mark.parametrize(
    ("host", "has_key", "warned"),
    [
        ("127.0.0.1", False, False),
        ("localhost", False, False),
        ("0.0.0.0", False, True),
        ("0.0.0.0", True, False),
    ],
)
def test_a_service_that_others_reach_warns_when_it_takes_any_rows(
    tmp_path: Path, checkpoint: Path, host: str, has_key: bool, warned: bool
) -> None:
    file = tmp_path / "key"
    file.write_bytes(bytes(32))
    file.chmod(0o400)
    key_file = file if has_key else None
    settings = Settings(checkpoint=checkpoint, host=host, embedding_key_file=key_file)
    with capture_logs() as events:
        key = embedding_key(settings)
    assert (key is not None) is has_key
    assert [event["event"] for event in events] == ["embeddings_unsigned"] * warned


def test_a_key_that_goes_before_the_service_starts(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    checkpoint: Path,
) -> None:
    file = tmp_path / "key"
    file.write_bytes(bytes(32))

    def load_and_lose(settings: Settings) -> tuple[ModelInfo, LLMEngine]:
        file.unlink()
        return load(settings)

    monkeypatch.setattr("llm_service.__main__.load", load_and_lose)
    words = ("--checkpoint", str(checkpoint), "--embedding-key-file", str(file))
    told = sentence_of_failure(monkeypatch, capsys, *words)
    assert told == f"the key {file} cannot be read: No such file or directory"


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch, checkpoint: Path) -> None:
    def bug(*_: object) -> None:
        raise ValueError("a bug")

    monkeypatch.setattr("llm_service.__main__.create_engine", bug)
    monkeypatch.setattr(sys, "argv", ["internvl-llm", "--checkpoint", str(checkpoint)])
    with pytest.raises(ValueError, match="a bug"):
        main()
