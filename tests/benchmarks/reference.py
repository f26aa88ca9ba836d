"""The reference's preprocessing, written out: OpenGVLab/InternVL's `load_image`, step by step.

Torchvision's transforms stand here as the torch operations that they are, because our extras do not
install torchvision. `dynamic_preprocess` and `build_transform` are those of the model card.
"""

from __future__ import annotations

import io

import numpy as np
import torch
from PIL import Image

from vision_service.checkpoint import IMAGENET_MEAN, IMAGENET_STD

TILE_SIZE = 448
MAX_TILE_COUNT = 12


def reference_pixel_values(data: bytes) -> torch.Tensor:
    """Returns [tiles, 3, 448, 448] float32 as the reference's `load_image` does."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    tiles = reference_tiles(image)
    return torch.stack([_normalised(_to_tensor(tile)) for tile in tiles])


def reference_tiles(image: Image.Image) -> list[Image.Image]:
    """The reference's `dynamic_preprocess` with its thumbnail."""
    columns, rows = _closest_grid(image.width, image.height)
    resized = image.resize((TILE_SIZE * columns, TILE_SIZE * rows))
    boxes = [(TILE_SIZE * (i % columns), TILE_SIZE * (i // columns)) for i in range(columns * rows)]
    tiles = [resized.crop((x, y, x + TILE_SIZE, y + TILE_SIZE)) for x, y in boxes]
    if len(tiles) != 1:
        tiles.append(image.resize((TILE_SIZE, TILE_SIZE)))
    return tiles


def _closest_grid(width: int, height: int) -> tuple[int, int]:
    counts = range(1, MAX_TILE_COUNT + 1)
    grids = {(i, j) for n in counts for i in range(1, n + 1) for j in range(1, n + 1)}
    best, best_difference = (1, 1), float("inf")
    for columns, rows in sorted(grids, key=lambda grid: grid[0] * grid[1]):
        if columns * rows > MAX_TILE_COUNT:
            break
        difference = abs(width / height - columns / rows)
        covers = width * height > 0.5 * TILE_SIZE * TILE_SIZE * columns * rows
        if difference < best_difference or (difference == best_difference and covers):
            best, best_difference = (columns, rows), difference
    return best


def _to_tensor(tile: Image.Image) -> torch.Tensor:
    """Torchvision's ToTensor: [height, width, 3] uint8 -> [3, height, width] float32, 0 to 1."""
    values = torch.from_numpy(np.array(tile, np.uint8, copy=True))
    values = values.view(tile.height, tile.width, 3).permute(2, 0, 1).contiguous()
    return values.to(dtype=torch.float32).div(255)


def _normalised(values: torch.Tensor) -> torch.Tensor:
    """Torchvision's Normalize, not in place."""
    values = values.clone()
    mean = torch.as_tensor(IMAGENET_MEAN, dtype=values.dtype).view(-1, 1, 1)
    std = torch.as_tensor(IMAGENET_STD, dtype=values.dtype).view(-1, 1, 1)
    return values.sub_(mean).div_(std)
