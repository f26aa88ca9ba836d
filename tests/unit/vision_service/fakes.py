"""Doubles for the vision tests: an engine without a model, pictures made on the spot."""

from __future__ import annotations

import io
import queue
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

TOKENS_PER_TILE = 2
HIDDEN_SIZE = 3


class FakeEngine:
    """Encodes a tile as its mean value, and can be held, watched and broken.

    Attributes:
        batch_tile_counts: tiles of each batch so far.
        gate: no batch is ready until it is set.
        entered: set once a batch was submitted.
        submissions: the tile counts of the batches again, for who waits for one.
        error: raised by whoever waits for a batch.
        submit_error: raised to whoever submits the next one.
        poison: tiles of this mean value have an embedding of NaN.
    """

    dtype = torch.float32
    weights_sha256 = bytes(32)

    def __init__(self, tokens_per_tile: int = TOKENS_PER_TILE, hidden: int = HIDDEN_SIZE) -> None:
        self._row_shape = (tokens_per_tile, hidden)
        self.batch_tile_counts: list[int] = []
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.submissions: queue.SimpleQueue[int] = queue.SimpleQueue()
        self.error: Exception | None = None
        self.submit_error: Exception | None = None
        self.poison = -1.0

    def encode(self, tiles: torch.Tensor) -> torch.Tensor:
        means = tiles.to(torch.float32).mean(dim=(1, 2, 3))
        means[means == self.poison] = torch.nan
        return means[:, None, None].repeat(1, *self._row_shape)

    def submit(self, images: Sequence[torch.Tensor]) -> FakeBatch:
        self.batch_tile_counts.append(sum(map(len, images)))
        self.submissions.put(self.batch_tile_counts[-1])
        self.entered.set()
        if (error := self.submit_error) is not None:
            self.submit_error = None
            raise error
        return FakeBatch(self, [self.encode(tiles) for tiles in images])

    def is_alive(self) -> bool:
        return True

    def close(self) -> None:
        pass


@dataclass
class FakeBatch:
    """A batch of a FakeEngine, ready once the engine's gate is set; each has one padding tile."""

    engine: FakeEngine
    embeddings: list[torch.Tensor]
    padding_tile_count: int = 1

    def is_ready(self) -> bool:
        return self.engine.gate.is_set()

    def wait(self) -> list[torch.Tensor]:
        self.engine.gate.wait()
        if self.engine.error is not None:
            raise self.engine.error
        return self.embeddings

    def are_finite(self) -> list[bool]:
        return [bool(part.isfinite().all()) for part in self.embeddings]


def tiles_of(*values: int) -> torch.Tensor:
    """Returns one 2x2 tile a value, filled with it: [n, 3, 2, 2] uint8."""
    return torch.tensor(values, dtype=torch.uint8).view(-1, 1, 1, 1).repeat(1, 3, 2, 2)


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """Returns an RGB picture of smooth colours with some noise."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
    noise = rng.integers(-8, 9, (height, width, 3))
    values = np.asarray(coarse.resize((width, height))).astype(np.int64) + noise
    return Image.fromarray(values.clip(0, 255).astype(np.uint8))


def encoded(image: Image.Image, image_format: str = "PNG", **options: Any) -> bytes:
    """Returns the image as a file."""
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()
