"""What every vision engine promises: uint8 tiles in, image embeddings out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch

# An engine's element types, by their names in options and in the record of a plan.
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def dtype_name(dtype: torch.dtype) -> str:
    """Returns an element type's name in options, e.g. "bfloat16"."""
    return str(dtype).removeprefix("torch.")


class EngineStartError(Exception):
    """The engine cannot start: a sentence that names the setting or the file at fault."""


class EncodingBatch(Protocol):
    """A batch that an engine has taken."""

    @property
    def padding_tile_count(self) -> int:
        """Tiles computed in addition, to fill the batch up to a size that the engine has."""
        ...

    def is_ready(self) -> bool:
        """Whether `wait` would return at once."""
        ...

    def wait(self) -> list[torch.Tensor]:
        """Returns the embeddings, image by image: [n, tokens_per_tile, hidden].

        They are on the CPU, and share memory neither with each other nor with the engine. What
        `submit` may raise for want of memory, this may raise too.
        """
        ...

    def are_finite(self) -> list[bool]:
        """Returns for each image whether all values of its embedding are finite; after `wait`."""
        ...


def tile_sums(embeddings: torch.Tensor) -> torch.Tensor:
    """Returns [n] float32, the sums of embeddings [n, tokens_per_tile, hidden] by tile.

    A sum is finite where all of its values are: to tell that it takes one pass, and no memory.
    """
    return embeddings.sum((1, 2), dtype=torch.float32)


class VisionEngine(Protocol):
    """What turns tiles into embeddings; used by one thread at a time."""

    @property
    def dtype(self) -> torch.dtype:
        """Element type of the embeddings."""
        ...

    @property
    def weights_sha256(self) -> bytes:
        """Digest of the checkpoint's vision tensors as stored (checkpoint.TensorDigest)."""
        ...

    def encode(self, tiles: torch.Tensor) -> torch.Tensor:
        """Returns the embeddings of tiles.

        Args:
            tiles: [n, 3, tile_size, tile_size] uint8 RGB on the CPU, not yet normalised.

        Returns:
            [n, tokens_per_tile, hidden] of `dtype`, on the CPU.
        """
        ...

    def submit(self, images: Sequence[torch.Tensor]) -> EncodingBatch:
        """Takes a batch of one or more images' tiles, each as for `encode`.

        On a GPU it returns before the embeddings are there, so that the next batch can be submitted
        meanwhile; with two in flight it waits for the first.
        """
        ...

    def is_alive(self) -> bool:
        """Returns False once it is known that all batches will fail; for any thread."""
        ...

    def close(self) -> None:
        """Frees what of the engine is in another process; no batch is in flight."""
        ...


@runtime_checkable
class InPlaceEngine(Protocol):
    """A VisionEngine that takes tiles from the caller's memory, and puts embeddings into it."""

    def submit_in_place(
        self, tiles: torch.Tensor, tile_counts: Sequence[int], rows: torch.Tensor
    ) -> EncodingBatch:
        """Takes a batch as `submit` does, but copies nothing.

        Args:
            tiles: [n, 3, tile_size, tile_size] uint8, best in page-locked memory; of the engine's
                until the batch was waited for, as the rows are.
            tile_counts: how many of them each image has.
            rows: [n, tokens_per_tile, hidden] of `dtype`, where the embeddings go.
        """
        ...


def not_finite(what: str, dtype: torch.dtype, remedy: str) -> str:
    """Returns a sentence: what is not finite, in which type, and what helps where that is small."""
    found = f"{what} not finite in {dtype_name(dtype)}"
    if dtype != torch.float16:
        return found
    return f"{found}, which ends at 65504: {remedy}"
