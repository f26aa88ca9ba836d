"""The image embedding: what the service makes of a file, and what names it."""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import dataclass

import torch

from protos.identity import EmbeddingId
from protos.signature import EmbeddingClaim
from vision_service.tiling import Grid


@dataclass(frozen=True)
class Timings:
    """Durations of one encode, in seconds; the worker's is the wait for one that decodes."""

    preprocess_seconds: float = 0.0
    queue_seconds: float = 0.0
    forward_seconds: float = 0.0
    worker_wait_seconds: float = 0.0


@dataclass(frozen=True)
class ImageEmbedding:
    """An embedding and what it is of.

    Attributes:
        id: its name.
        rows: [grid.tile_count x tokens_per_tile, hidden], contiguous, on the CPU.
        checksumming: becomes the CRC-32 of the rows' bytes.
        grid: how the image was cut.
        image_width: of the decoded image, upright, in pixels.
        image_height: likewise.
        timings: where the time of its encoding went.
        signing: becomes the signature of id, dtype, shape and rows; None without a key.
    """

    id: EmbeddingId
    rows: torch.Tensor
    checksumming: asyncio.Future[int]
    grid: Grid
    image_width: int
    image_height: int
    timings: Timings
    signing: asyncio.Future[bytes] | None = None

    # Both are shielded, as others may wait for them, too.

    async def crc32(self) -> int:
        """Returns the CRC-32 of the rows' bytes once it is computed."""
        return await asyncio.shield(self.checksumming)

    async def signature(self) -> bytes:
        """Returns the signature once it is made; empty without a key."""
        return await asyncio.shield(self.signing) if self.signing is not None else b""

    @property
    def byte_count(self) -> int:
        """Size of the rows in bytes."""
        return self.rows.nbytes


def tensor_bytes(tensor: torch.Tensor) -> memoryview:
    """Returns the bytes of a contiguous CPU tensor without a copy; numpy has no bfloat16."""
    return tensor.reshape(-1).view(torch.uint8).numpy().data


def embedding_claim(id_: EmbeddingId, rows: torch.Tensor) -> EmbeddingClaim:
    """Returns what is signed of an embedding; hashes all its rows."""
    return EmbeddingClaim(
        id=id_,
        dtype=str(rows.dtype).removeprefix("torch."),
        shape=tuple(rows.shape),
        rows_sha256=hashlib.sha256(tensor_bytes(rows)).digest(),
    )
