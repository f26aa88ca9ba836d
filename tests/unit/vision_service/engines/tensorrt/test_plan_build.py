"""The builder: real plans by TensorRT-RTX, which needs no GPU for them; and its refusals."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from pydantic import ValidationError

from tests.unit.vision_service.engines.tensorrt.towers import GOLDEN, write_released, write_small_6b
from vision_service.checkpoint import VisionConfig
from vision_service.engines.base import DTYPES
from vision_service.engines.tensorrt.build import BuildSettings, build
from vision_service.engines.tensorrt.builder import (
    BuildError,
    build_plan,
    import_library,
    target_gpu,
)
from vision_service.engines.tensorrt.record import ONNX_FILE, PLAN_FILE, RECORD_FILE, PlanRecord
from vision_service.recipe import plan_recipe_sha256


@pytest.fixture
def rtx() -> Any:
    pytest.importorskip("onnx")
    return pytest.importorskip("tensorrt_rtx")


def settings_for(checkpoint: Path, output: Path, **values: Any) -> BuildSettings:
    return BuildSettings.model_validate({"checkpoint": checkpoint, "output": output, **values})


def build_here(checkpoint: Path, output: Path, **values: Any) -> tuple[PlanRecord, bytes]:
    """Builds with TensorRT-RTX; returns the record and the plan."""
    build(settings_for(checkpoint, output, library="tensorrt_rtx", **values))
    return PlanRecord.read(output), (output / PLAN_FILE).read_bytes()


@pytest.mark.parametrize(
    ("tower", "dtype"),
    [
        ("300m-style", "bfloat16"),
        pytest.param("300m-style", "float16", marks=pytest.mark.slow),
        pytest.param("6b-style", "bfloat16", marks=pytest.mark.slow),
        ("6b-style", "float16"),
    ],
)
def test_a_plan_and_its_record(tmp_path: Path, rtx: Any, tower: str, dtype: str) -> None:
    checkpoint = GOLDEN[0] if tower == "300m-style" else write_small_6b(tmp_path / "checkpoint")
    record, plan = build_here(checkpoint, tmp_path / "plan", dtype=dtype)
    weights_sha256 = bytes.fromhex(record.weights_sha256)
    config = VisionConfig.from_checkpoint(checkpoint)
    assert record == PlanRecord(
        plan_sha256=hashlib.sha256(plan).hexdigest(),
        weights_sha256=record.weights_sha256,
        recipe_sha256=plan_recipe_sha256(config, weights_sha256, DTYPES[dtype]).hex(),
        dtype=dtype,
        tile_counts=(1, 13, 26),
        library="tensorrt_rtx",
        library_version=rtx.__version__,
        gpu=None,
    )


@pytest.mark.slow
def test_the_network_is_strongly_typed(
    tmp_path: Path, rtx: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    networks = []
    create_network = rtx.Builder.create_network

    def create_watched(builder: Any, flags: int = 0) -> Any:
        networks.append((flags, create_network(builder, flags)))
        return networks[-1][1]

    monkeypatch.setattr(rtx.Builder, "create_network", create_watched)
    build_here(GOLDEN[0], tmp_path)
    ((flags, network),) = networks
    assert flags == 1 << int(rtx.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    assert described(network.get_input(0)) == ("tiles", rtx.DataType.UINT8, (-1, 3, 448, 448))
    assert described(network.get_output(0)) == ("embeddings", rtx.DataType.BF16, (-1, 256, 64))


def described(tensor: Any) -> tuple[str, Any, tuple[int, ...]]:
    return tensor.name, tensor.dtype, tuple(tensor.shape)


def test_the_profile_is_the_settings(tmp_path: Path, rtx: Any) -> None:
    counts = {"min_tile_count": 2, "opt_tile_count": 3, "max_tile_count": 4}
    record, _ = build_here(GOLDEN[0], tmp_path, **counts)
    assert record.tile_counts == (2, 3, 4)


@pytest.mark.slow
def test_a_build_that_fails_leaves_no_record(
    tmp_path: Path, rtx: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_here(GOLDEN[0], tmp_path)
    monkeypatch.setattr("vision_service.engines.tensorrt.build.build_plan", _fail)
    with pytest.raises(BuildError, match="on purpose"):
        build_here(GOLDEN[0], tmp_path)
    assert not (tmp_path / RECORD_FILE).exists()


def _fail(*_: object) -> memoryview:
    raise BuildError("on purpose")


def test_a_graph_that_the_parser_refuses_is_named(tmp_path: Path, rtx: Any) -> None:
    file = tmp_path / ONNX_FILE
    file.write_bytes(b"no graph")
    settings = settings_for(GOLDEN[0], tmp_path)
    with pytest.raises(BuildError, match=r"vision\.onnx: tensorrt_rtx .* refuses it"):
        build_plan(rtx, file, settings.tile_counts)


def test_the_command_builds(tmp_path: Path, rtx: Any) -> None:
    command = [
        sys.executable,
        "-m",
        "vision_service.engines.tensorrt.build",
        "--checkpoint",
        str(GOLDEN[0]),
    ]
    options = ["--output", str(tmp_path), "--library", "tensorrt_rtx", "--log-format", "json"]
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=True)
    assert '"event": "wrote_plan"' in done.stderr
    assert PlanRecord.read(tmp_path).tile_counts == (1, 13, 26)


@pytest.mark.slow
def test_the_command_says_what_is_wrong_in_a_line(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "vision_service.engines.tensorrt.build",
        "--checkpoint",
        str(tmp_path),
    ]
    options = ["--output", str(tmp_path), "--onnx-only", "--log-format", "json"]
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "there is no file" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_library_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(
        BuildError, match=r"^tensorrt cannot be imported \(.*\); install one with pip"
    ):
        import_library("tensorrt")


def test_auto_takes_the_library_that_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = ModuleType("tensorrt_rtx")
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", installed)
    assert import_library("auto") is installed


def test_without_onnx_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "vision_service.engines.tensorrt.vit_graph", raising=False)
    monkeypatch.delitem(sys.modules, "vision_service.engines.tensorrt.onnx_graph", raising=False)
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(BuildError, match=r"onnx is not installed; pip install '.*\[build\]'"):
        build(settings_for(GOLDEN[0], tmp_path, onnx_only=True))


def test_tensorrt_needs_a_gpu_to_build(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(BuildError, match="tensorrt builds for the GPU in this machine"):
        target_gpu(ModuleType("tensorrt"))


def test_tensorrt_builds_for_the_gpu_that_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = SimpleNamespace(
        is_available=lambda: True,
        get_device_capability=lambda: (9, 0),
        get_device_name=lambda: "NVIDIA H100",
    )
    monkeypatch.setattr("torch.cuda", fake)
    assert target_gpu(ModuleType("tensorrt")) == ("NVIDIA H100", "9.0")


def test_unordered_tile_counts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="tile count are 1, 27 and 26"):
        settings_for(GOLDEN[0], tmp_path, opt_tile_count=27)


def test_a_profile_beyond_tensorrts_own_numbers_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="max_tile_count\n  Input should be less"):
        settings_for(GOLDEN[0], tmp_path, max_tile_count=10**12)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("size", "layer_count"), [("1B", 24), ("26B", 4)])
def test_plans_of_released_widths(tmp_path: Path, rtx: Any, size: str, layer_count: int) -> None:
    """The 300M tower whole; of the 6B tower 4 of 45 layers: whole it takes 33 GB of memory."""
    checkpoint = write_released(tmp_path / "checkpoint", size, layer_count)
    record, plan = build_here(checkpoint, tmp_path / "plan")
    assert record.dtype == "bfloat16"
    weights = (tmp_path / "plan" / f"{ONNX_FILE}.data").stat().st_size
    assert len(plan) == pytest.approx(weights, rel=0.1)
