"""The image embedding: what the service makes of a file, and what names it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from protos.identity import EmbeddingId
from vision_service.tiling import Grid


@dataclass(frozen=True)
class Timings:
    """Durations of one encode, in seconds."""

    preprocess_seconds: float = 0.0
    queue_seconds: float = 0.0
    forward_seconds: float = 0.0


@dataclass(frozen=True)
class ImageEmbedding:
    """An embedding and what it is of.

    Attributes:
        id: its name.
        rows: [grid.tile_count x tokens_per_tile, hidden], contiguous, on the CPU.
        crc32: of the rows' bytes.
        grid: how the image was cut.
        image_width: of the decoded image, upright, in pixels.
        image_height: likewise.
        timings: where the time of its encoding went.
    """

    id: EmbeddingId
    rows: torch.Tensor
    crc32: int
    grid: Grid
    image_width: int
    image_height: int
    timings: Timings

    @property
    def byte_count(self) -> int:
        """Size of the rows in bytes."""
        return self.rows.nbytes


def tensor_bytes(tensor: torch.Tensor) -> memoryview:
    """Returns the bytes of a contiguous CPU tensor without a copy; numpy has no bfloat16."""
    return tensor.reshape(-1).view(torch.uint8).numpy().data
