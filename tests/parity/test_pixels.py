"""The pixels of the golden images: tiles bit for bit, normalised values to 1e-6."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.parity import golden
from tests.tiled_files import tile_file
from vision_service.checkpoint import IMAGENET_MEAN, IMAGENET_STD
from vision_service.engines.torch.engine import normalise

TILE_SIZE = 448
MAX_TILE_COUNT = 12


def image_tiles(data: bytes) -> torch.Tensor:
    tiled = tile_file(
        data,
        tile_size=TILE_SIZE,
        max_tile_count=MAX_TILE_COUNT,
        max_pixel_count=10**8,
        transparency="drop",
    )
    return torch.from_numpy(tiled.tiles)


@pytest.fixture
def pixels(golden_dir: Path) -> dict[str, torch.Tensor]:
    return golden.read_tensors(golden_dir / "images" / "pixels.safetensors")


def test_tiles_have_the_reference_bits(golden_dir: Path, pixels: dict[str, torch.Tensor]) -> None:
    for data, expected in golden.images_named(golden_dir, pixels, "tiles_u8"):
        tiles = image_tiles(data)
        assert tiles.dtype == expected.dtype
        assert torch.equal(tiles, expected)


def test_pixel_values_are_the_reference_values(
    golden_dir: Path, pixels: dict[str, torch.Tensor]
) -> None:
    for data, expected in golden.images_named(golden_dir, pixels, "pixel_values_sample"):
        values = normalise(image_tiles(data), IMAGENET_MEAN, IMAGENET_STD)
        torch.testing.assert_close(values[:, :, ::32, ::32], expected, rtol=0, atol=1e-6)
