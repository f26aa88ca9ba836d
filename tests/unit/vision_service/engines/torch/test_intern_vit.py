"""InternViT against a plain implementation of the specification: 6B style, 300M style, layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.unit.vision_service.checkpoints import (
    SMALL_6B,
    changed,
    random_tensors,
    write_checkpoint,
)
from tests.unit.vision_service.reference import plain_embeddings
from vision_service.checkpoint import PixelShuffleVersion, VisionConfig
from vision_service.engines.torch.engine import load_model
from vision_service.engines.torch.intern_vit import pixel_shuffle, resized_positions

SMALL_300M = changed(
    SMALL_6B,
    vision_config={"norm_type": "layer_norm", "qkv_bias": True, "qk_normalization": False},
)


@pytest.mark.parametrize(
    ("config", "layer_count"),
    [
        pytest.param(SMALL_6B, 2, id="6B"),
        pytest.param(SMALL_300M, 2, id="300M"),
        pytest.param(changed(SMALL_6B, select_layer=-2), 1, id="last layer but one"),
        pytest.param(changed(SMALL_6B, select_layer=1), 1, id="layer 1"),
        pytest.param(changed(SMALL_6B, ps_version="v1"), 2, id="pixel shuffle v1"),
    ],
)
def test_embeddings_equal_the_plain_implementation(
    tmp_path: Path, config: Any, layer_count: int
) -> None:
    folder = write_checkpoint(tmp_path, config)
    model, _ = load_model(
        folder, VisionConfig.from_checkpoint(folder), torch.device("cpu"), torch.float64
    )
    weights = {name: tensor.double() for name, tensor in random_tensors(config).items()}
    tiles = torch.randn(3, 3, 28, 28, dtype=torch.float64, generator=torch.Generator())
    with torch.inference_mode():
        found = model(tiles)
    expected = [plain_embeddings(tile, weights, config, layer_count) for tile in tiles]
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("stored_size", "tile_size"), [(28, 14), (28, 56), (56, 28), (28, 42)], ids=str
)
def test_positions_are_interpolated_to_another_tile_size(
    tmp_path: Path, stored_size: int, tile_size: int
) -> None:
    options = {"force_image_size": tile_size, "vision_config": {"image_size": stored_size}}
    checkpoint = changed(SMALL_6B, **options)
    folder = write_checkpoint(tmp_path, checkpoint)
    config = VisionConfig.from_checkpoint(folder)
    model, _ = load_model(folder, config, torch.device("cpu"), torch.float64)
    weights = {name: tensor.double() for name, tensor in random_tensors(checkpoint).items()}
    tiles = torch.randn(2, 3, tile_size, tile_size, dtype=torch.float64)
    with torch.inference_mode():
        found = model(tiles)
    assert found.shape == (2, config.tokens_per_tile, 24)
    expected = [plain_embeddings(tile, weights, checkpoint, 2) for tile in tiles]
    # Positions are interpolated in float32, as in the reference.
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-5, atol=1e-5)


def test_positions_keep_their_type_and_the_class_token() -> None:
    positions = torch.randn(1, 1 + 16, 8).bfloat16()
    resized = resized_positions(positions, 6)
    assert (resized.shape, resized.dtype) == ((1, 1 + 36, 8), torch.bfloat16)
    assert torch.equal(resized[:, 0], positions[:, 0])
    assert resized_positions(positions, 4) is positions


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ("v2", [[[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]]),
        ("v1", [[[0, 1, 4, 5], [8, 9, 12, 13], [2, 3, 6, 7], [10, 11, 14, 15]]]),
    ],
)
def test_pixel_shuffle_folds_squares(
    version: PixelShuffleVersion, expected: list[list[list[int]]]
) -> None:
    patches = torch.arange(16).view(1, 16, 1)  # a 4 x 4 grid of its own positions
    assert pixel_shuffle(patches, version).tolist() == expected
