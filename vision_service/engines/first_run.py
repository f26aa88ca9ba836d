"""The first run of an engine: it warms it, and shows whether its type holds the model's numbers."""

from __future__ import annotations

import torch

from vision_service.engines.base import VisionEngine


def first_embeddings(engine: VisionEngine, tile_size: int, tile_count: int = 2) -> torch.Tensor:
    """Returns the embeddings of `first_tiles`: [tile_count, tokens_per_tile, hidden]."""
    return engine.encode(first_tiles(tile_size, tile_count))


def first_tiles(tile_size: int, tile_count: int = 2) -> torch.Tensor:
    """Returns black tiles and tiles of noise, by turns.

    Args:
        tile_size: edge of a tile in pixels.
        tile_count: of both together.
    """
    shape = (tile_count, 3, tile_size, tile_size)
    generator = torch.Generator().manual_seed(0)
    tiles = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    tiles[::2] = 0
    return tiles
