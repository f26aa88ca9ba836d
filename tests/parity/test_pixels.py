"""The pixels of the golden images: tiles bit for bit, normalised values to 1e-6."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.parity import golden
from vision_service.checkpoint import IMAGENET_MEAN, IMAGENET_STD
from vision_service.engines.torch_engine import normalise
from vision_service.tiling import tile_file

TILE_SIZE = 448
MAX_TILE_COUNT = 12


def image_tiles(golden_dir: Path, name: str) -> torch.Tensor:
    data = golden.image_bytes(golden_dir, name)
    tiled = tile_file(
        data, tile_size=TILE_SIZE, max_tile_count=MAX_TILE_COUNT, max_pixel_count=10**8
    )
    return torch.from_numpy(tiled.tiles)


@pytest.fixture
def pixels(golden_dir: Path) -> dict[str, torch.Tensor]:
    return golden.read_tensors(golden_dir / "images" / "pixels.safetensors")


def test_tiles_have_the_reference_bits(golden_dir: Path, pixels: dict[str, torch.Tensor]) -> None:
    for name, expected in golden.tensors_named(pixels, "tiles_u8").items():
        tiles = image_tiles(golden_dir, name)
        assert tiles.dtype == expected.dtype
        assert torch.equal(tiles, expected), name


def test_pixel_values_are_the_reference_values(
    golden_dir: Path, pixels: dict[str, torch.Tensor]
) -> None:
    for name, expected in golden.tensors_named(pixels, "pixel_values_sample").items():
        values = normalise(image_tiles(golden_dir, name), IMAGENET_MEAN, IMAGENET_STD)
        torch.testing.assert_close(values[:, :, ::32, ::32], expected, rtol=0, atol=1e-6)
