"""What a user can do wrong at start: one sentence on one line, exit status 1, no traceback."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from protos.process.memory import FreeMemory
from tests.unit.vision_service.checkpoints import (
    SMALL_6B,
    changed,
    random_tensors,
    write_checkpoint,
)
from vision_service.__main__ import main


@pytest.fixture
def start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """Runs the program over the checkpoint in the test's folder; returns why it did not start."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")

    def run(*options: str) -> str:
        words = ["--checkpoint", str(tmp_path), "--port", "0"]
        monkeypatch.setattr(sys, "argv", ["", *words, *options])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 1
        *before, last = capfd.readouterr().err.splitlines()
        assert "Traceback" not in "".join(before)
        event = json.loads(last)
        assert event["event"] == "start_failed"
        return str(event["error"])

    return run


def test_a_folder_that_is_no_checkpoint(start: Callable[..., str], tmp_path: Path) -> None:
    assert start() == f"there is no file {tmp_path}/config.json"


def test_weights_that_are_cut_short(start: Callable[..., str], tmp_path: Path) -> None:
    file = write_checkpoint(tmp_path) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    assert "model.safetensors is damaged, or not whole" in start()


def test_weights_of_another_model(start: Callable[..., str], tmp_path: Path) -> None:
    config = changed(SMALL_6B, vision_config={"intermediate_size": 65})
    write_checkpoint(tmp_path, config, random_tensors(SMALL_6B))
    told = start()
    assert "vision_model.encoder.layers.0.mlp.fc1.bias is F32 [64]; config" in told
    assert told.endswith("floats [65]")


def test_kinds_of_checkpoints_that_are_not_served(
    start: Callable[..., str], tmp_path: Path
) -> None:
    lora = {
        name.replace("vision_model.", "vision_model.base_model.model."): tensor
        for name, tensor in random_tensors(SMALL_6B).items()
    }
    write_checkpoint(tmp_path, changed({**SMALL_6B, "use_backbone_lora": 16}), lora)
    told = start()
    assert "is of a LoRA that is not merged (use_backbone_lora is 16); merge it with" in told
    assert len(told) < 400
    awq = {**SMALL_6B, "quantization_config": {"quant_method": "awq"}}
    write_checkpoint(tmp_path, awq)
    assert "quantization_config.quant_method is 'awq', that of a quantised checkpoint" in start()


def test_a_device_that_is_not_there(
    start: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_checkpoint(tmp_path)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert "PyTorch finds no CUDA device" in start("--torch.device", "cuda")


def test_a_folder_that_is_no_plan(
    start: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_checkpoint(tmp_path)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    plan = ("--engine", "tensorrt", "--tensorrt.plan", str(tmp_path))
    assert "plan.json: is no record of a finished plan" in start(*plan)


FC2 = "vision_model.encoder.layers.1.mlp.fc2.weight"


@pytest.mark.parametrize(
    ("factor", "dtype", "sentence"),
    [
        (
            3e4,
            "float16",
            "the embeddings of the vision model are not finite in float16, which ends at 65504: "
            "serve it with --torch.dtype bfloat16 or float32",
        ),
        (
            1e6,
            "float16",
            f"the checkpoint's {FC2} is not finite in float16, which ends at 65504: "
            "serve it with --torch.dtype bfloat16 or float32",
        ),
        (
            math.nan,
            "float32",
            f"the weights themselves are not finite: the checkpoint's {FC2} holds NaN",
        ),
    ],
)
def test_embeddings_that_are_not_finite(
    start: Callable[..., str], tmp_path: Path, factor: float, dtype: str, sentence: str
) -> None:
    tensors = random_tensors(SMALL_6B)
    write_checkpoint(tmp_path, tensors=tensors | {FC2: tensors[FC2] * factor})
    assert start("--torch.dtype", dtype) == sentence


def test_too_little_memory(
    start: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_checkpoint(tmp_path)
    monkeypatch.setattr(
        "vision_service.engines.torch.engine.free_host_memory",
        lambda: FreeMemory(1000, "are free here"),
    )
    assert start("--torch.dtype", "float32") == (
        "there is too little memory: the weights take 0.1 MiB in float32;"
        " 0.0 MiB are free here. What helps: --torch.dtype bfloat16, which halves all,"
        " or a smaller model"
    )


def test_a_position_that_is_no_number_is_found_wherever_it_is(
    start: Callable[..., str], tmp_path: Path
) -> None:
    name = "vision_model.embeddings.position_embedding"
    tensors = random_tensors(SMALL_6B)
    tensors[name][0, -1, 0] = math.nan
    write_checkpoint(tmp_path, tensors=tensors)
    assert start("--torch.dtype", "float32") == (
        f"the weights themselves are not finite: the checkpoint's {name} holds NaN"
    )


@pytest.mark.parametrize(
    "error",
    [RuntimeError("DefaultCPUAllocator: can't allocate memory"), MemoryError()],
    ids=["host", "python"],
)
def test_memory_that_turns_out_to_be_too_little(
    start: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: object) -> None:
        raise error

    write_checkpoint(tmp_path)
    monkeypatch.setattr("vision_service.engines.torch.engine.normalise", fail)
    assert start().startswith("there is too little memory: the weights take 0.1 MiB in ")


def test_an_address_that_is_not_this_machines(start: Callable[..., str], tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    sentence = "cannot listen on 192.0.2.1:0: Cannot assign requested address"
    assert start("--host", "192.0.2.1") == sentence
