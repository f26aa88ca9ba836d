"""The torch engine: types, threads, and weights that do not fit their config."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from protos.checkpoint.section import CheckpointError
from tests.unit.vision_service.checkpoints import (
    SMALL_6B,
    changed,
    random_tensors,
    write_checkpoint,
)
from vision_service.checkpoint import VisionConfig
from vision_service.engines.base import EngineStartError, VisionEngine
from vision_service.engines.create import create_engine
from vision_service.settings import Settings

TILES = torch.arange(2 * 3 * 28 * 28).remainder(251).to(torch.uint8).view(2, 3, 28, 28)


def engine_of(path: Path, **options: str) -> VisionEngine:
    torch_options = {"device": "cpu", "thread_count": 1, **options}
    settings = Settings.model_validate({"checkpoint": path, "torch": torch_options})
    return create_engine(settings, VisionConfig.from_checkpoint(path))


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("float32", torch.float32),
        ("bfloat16", torch.bfloat16),
        ("float16", torch.float16),
    ],
)
def test_embeddings_have_the_chosen_type(tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    engine = engine_of(write_checkpoint(tmp_path), dtype=name)
    embeddings = engine.encode(TILES)
    assert (embeddings.dtype, engine.dtype) == (dtype, dtype)
    assert (embeddings.shape, embeddings.device.type) == ((2, 4, 24), "cpu")
    exact = engine_of(tmp_path, dtype="float32").encode(TILES)
    assert (embeddings.float() - exact).norm() < 0.05 * exact.norm()


@pytest.mark.parametrize(
    ("name", "dtype"), [("float32", torch.float32), ("bfloat16", torch.bfloat16)]
)
def test_auto_is_the_type_that_is_faster_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, dtype: torch.dtype
) -> None:
    monkeypatch.setattr("vision_service.engines.torch.engine.faster_type", lambda *_: name)
    assert engine_of(write_checkpoint(tmp_path)).dtype == dtype


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_tile_does_not_depend_on_its_batch(tmp_path: Path, dtype: str) -> None:
    engine = engine_of(write_checkpoint(tmp_path), dtype=dtype)
    alone = torch.cat([engine.encode(TILES[:1]), engine.encode(TILES[1:])])
    assert torch.equal(engine.encode(TILES), alone)
    assert torch.equal(engine.encode(TILES[:1]), alone[:1])  # nor on the tiles before it


def test_the_tiles_stay_as_they_are(tmp_path: Path) -> None:
    tiles = TILES.clone()
    engine_of(write_checkpoint(tmp_path)).encode(tiles)
    assert torch.equal(tiles, TILES)


def test_the_weights_digest_is_that_of_the_stored_tensors(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    digests = {engine_of(tmp_path, dtype=name).weights_sha256 for name in ("float32", "bfloat16")}
    assert [len(digest) for digest in digests] == [32]


def test_a_missing_tensor_is_refused(tmp_path: Path) -> None:
    tensors = random_tensors(SMALL_6B)
    del tensors["vision_model.encoder.layers.1.ls2"]
    write_checkpoint(tmp_path, tensors=tensors)
    with pytest.raises(CheckpointError, match=r"lacks the tensor .*layers\.1\.ls2"):
        engine_of(tmp_path)


def test_an_unexpected_tensor_is_refused(tmp_path: Path) -> None:
    tensors = {**random_tensors(SMALL_6B), "mlp1.4.weight": torch.zeros(1)}
    write_checkpoint(tmp_path, tensors=tensors)
    with pytest.raises(CheckpointError, match=r"unexpected tensor mlp1\.4\.weight"):
        engine_of(tmp_path)


@pytest.mark.parametrize("layer_count", [1, 3, 60_000])
def test_another_number_of_layers_is_refused(tmp_path: Path, layer_count: int) -> None:
    config = changed(SMALL_6B, vision_config={"num_hidden_layers": layer_count})
    write_checkpoint(tmp_path, config, random_tensors(SMALL_6B))
    complaint = f"tensors of 2 layers, but vision_config.num_hidden_layers is {layer_count}"
    with pytest.raises(CheckpointError, match=complaint):
        engine_of(tmp_path)


def test_a_tensor_of_another_shape_is_refused(tmp_path: Path) -> None:
    tensors = {**random_tensors(SMALL_6B), "mlp1.3.bias": torch.zeros(23)}
    write_checkpoint(tmp_path, tensors=tensors)
    with pytest.raises(CheckpointError, match=r"mlp1\.3\.bias is F32 \[23\]; .* floats \[24\]"):
        engine_of(tmp_path)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_missing_device_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EngineStartError, match="device is cuda, but PyTorch finds no CUDA device"):
        engine_of(write_checkpoint(tmp_path), device="cuda")
