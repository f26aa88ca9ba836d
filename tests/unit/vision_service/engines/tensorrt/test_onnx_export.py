"""The exported graph: ONNX Runtime computes with it what the torch engine computes."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from protos.checkpoint.section import CheckpointError
from tests.unit.vision_service.engines.tensorrt.towers import (
    GOLDEN,
    write_released,
    write_small_6b,
    write_with_options,
)
from vision_service.checkpoint import VisionConfig
from vision_service.engines.base import DTYPES
from vision_service.engines.tensorrt.build import BuildSettings, build
from vision_service.engines.tensorrt.record import ONNX_FILE, PLAN_FILE, RECORD_FILE
from vision_service.engines.torch.engine import TorchEngine, load_model

onnx = pytest.importorskip("onnx")


WRITTEN = {"small-6b": write_small_6b, "options": write_with_options}


@pytest.fixture(params=[*(path.name for path in GOLDEN), *WRITTEN])
def checkpoint(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    if request.param in WRITTEN:
        return WRITTEN[request.param](tmp_path / "checkpoint")
    return GOLDEN[0].with_name(request.param)


def export(checkpoint: Path, output: Path, dtype: str) -> Path:
    """Exports as `--onnx-only` does; returns the graph's file."""
    values = {"checkpoint": checkpoint, "output": output, "dtype": dtype, "onnx_only": True}
    build(BuildSettings.model_validate(values))
    return output / ONNX_FILE


def torch_engine(checkpoint: Path, dtype: torch.dtype = torch.float32) -> TorchEngine:
    config = VisionConfig.from_checkpoint(checkpoint)
    model, digest = load_model(checkpoint, config, torch.device("cpu"), dtype)
    return TorchEngine(model, config, digest)


def tiles_of(checkpoint: Path, count: int) -> torch.Tensor:
    edge = VisionConfig.from_checkpoint(checkpoint).tile_size
    generator = torch.Generator().manual_seed(count)
    return torch.randint(0, 256, (count, 3, edge, edge), dtype=torch.uint8, generator=generator)


def run_onnx(file: Path, tiles: torch.Tensor) -> torch.Tensor:
    runtime = pytest.importorskip("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = runtime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    (embeddings,) = session.run(["embeddings"], {"tiles": tiles.numpy()})
    return torch.from_numpy(embeddings)


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Returns the root mean square of the difference by that of the expected values."""
    assert found.shape == expected.shape
    difference = found.float() - expected.float()
    return (difference.square().mean() / expected.float().square().mean()).sqrt().item()


def assert_within(found: torch.Tensor, expected: torch.Tensor, bound: float) -> None:
    """No value may be off by more than this part of the root mean square."""
    limit = bound * expected.square().mean().sqrt().item()
    torch.testing.assert_close(found, expected, rtol=0, atol=limit)


def test_float32_embeddings_are_those_of_the_torch_engine(checkpoint: Path, tmp_path: Path) -> None:
    file, engine = export(checkpoint, tmp_path, "float32"), torch_engine(checkpoint)
    for count in (1, 2, 13):
        tiles = tiles_of(checkpoint, count)
        assert_within(run_onnx(file, tiles), engine.encode(tiles), 1e-4)


def test_float16_embeddings_have_float16_errors(checkpoint: Path, tmp_path: Path) -> None:
    file, engine = export(checkpoint, tmp_path, "float16"), torch_engine(checkpoint)
    tiles = tiles_of(checkpoint, 2)
    found = run_onnx(file, tiles)
    assert found.dtype == torch.float16
    assert relative_error(found, engine.encode(tiles)) < 5e-3


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_operator_takes_its_types(checkpoint: Path, tmp_path: Path, dtype: str) -> None:
    file = export(checkpoint, tmp_path, dtype)
    onnx.checker.check_model(str(file), full_check=True)
    typed = onnx.shape_inference.infer_shapes(onnx.load(file), check_type=True, strict_mode=True)
    kind = typed.graph.output[0].type.tensor_type.elem_type
    assert onnx.TensorProto.DataType.Name(kind) == {
        "float32": "FLOAT", "bfloat16": "BFLOAT16", "float16": "FLOAT16",
    }[dtype]  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES)
def test_all_but_the_tile_count_has_a_known_size(
    checkpoint: Path, tmp_path: Path, dtype: str
) -> None:
    graph = onnx.shape_inference.infer_shapes(
        onnx.load(export(checkpoint, tmp_path, dtype)), data_prop=True
    ).graph
    sizes = {value.name: value.type.tensor_type.shape.dim for value in graph.value_info}
    products = [node.output[0] for node in graph.node if node.op_type == "MatMul"]
    assert products
    for name in products:
        assert all(size.HasField("dim_value") for size in sizes[name][1:]), name


def test_weights_lie_beside_the_graph_in_the_element_type(checkpoint: Path, tmp_path: Path) -> None:
    file = export(checkpoint, tmp_path, "bfloat16")
    model, _ = load_model(
        checkpoint, VisionConfig.from_checkpoint(checkpoint), torch.device("cpu"), torch.bfloat16
    )
    weights = sum(parameter.nbytes for parameter in model.parameters())
    constants = file.with_name(f"{ONNX_FILE}.data").stat().st_size - weights
    assert 0 < constants < 64  # 255, mean, std, the scale of queries, the epsilon of RMSNorm
    assert file.stat().st_size < 100_000


def test_onnx_only_builds_no_plan(tmp_path: Path) -> None:
    export(GOLDEN[0], tmp_path, "bfloat16")
    assert not (tmp_path / PLAN_FILE).exists()
    assert not (tmp_path / RECORD_FILE).exists()


def test_a_checkpoint_with_a_missing_file_is_refused(tmp_path: Path) -> None:
    broken = tmp_path / "checkpoint"
    shutil.copytree(GOLDEN[0], broken)
    (broken / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        export(broken, tmp_path, "float32")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_300m_tower_whole(tmp_path: Path) -> None:
    checkpoint = write_released(tmp_path / "checkpoint", "1B", layer_count=24)
    file, engine = export(checkpoint, tmp_path, "float32"), torch_engine(checkpoint)
    for count in (1, 2, 13):
        tiles = tiles_of(checkpoint, count)
        assert_within(run_onnx(file, tiles), engine.encode(tiles), 1e-4)
