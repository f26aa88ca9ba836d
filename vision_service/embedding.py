"""The image embedding: what the service makes of a file, and what names it."""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import dataclass
from itertools import accumulate

import torch

from protos.identity import EmbeddingId
from protos.process.call_record import Stage
from protos.signature import EmbeddingClaim
from vision_service.tiling import Grid

STAGES = ("worker_wait", "preprocess", "queue", "forward")


@dataclass(frozen=True)
class Timings:
    """Where the time of one encode went, in seconds; one stage begins as the last one ends.

    Attributes:
        begun_at: when it began, on the clock of `time.monotonic`.
        worker_wait_seconds: the wait for a worker that decodes.
        preprocess_seconds: decoding the file, cutting and resizing tiles.
        queue_seconds: the wait for the engine.
        forward_seconds: the engine's batches that the tiles were in.
    """

    begun_at: float = 0.0
    worker_wait_seconds: float = 0.0
    preprocess_seconds: float = 0.0
    queue_seconds: float = 0.0
    forward_seconds: float = 0.0

    def stages(self) -> list[Stage]:
        """Returns the stages in their order."""
        ends = list(accumulate(self._durations(), initial=self.begun_at))
        return list(map(Stage, STAGES, ends, ends[1:]))

    def since(self, moment: float) -> Timings:
        """Returns what is left of it after a moment: for those who came when it had begun."""
        left = (max(0.0, stage.end - max(stage.start, moment)) for stage in self.stages())
        return Timings(max(self.begun_at, moment), *left)

    def _durations(self) -> tuple[float, ...]:
        return (
            self.worker_wait_seconds,
            self.preprocess_seconds,
            self.queue_seconds,
            self.forward_seconds,
        )


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
