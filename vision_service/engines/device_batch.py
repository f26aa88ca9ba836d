"""A batch that a device computes: its engine goes on before the embeddings are there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class DeviceBatch:
    """An EncodingBatch whose embeddings come into memory of the host."""

    embeddings: list[torch.Tensor]
    padding_tile_count: int
    _sums: torch.Tensor  # of the tiles; on the host, as the embeddings
    _downloaded: Any  # the device's event behind both

    def is_ready(self) -> bool:
        ready: bool = self._downloaded.query()
        return ready

    def wait(self) -> list[torch.Tensor]:
        self._downloaded.synchronize()
        return self.embeddings

    def are_finite(self) -> list[bool]:
        parts = torch.split(self._sums, list(map(len, self.embeddings)))
        return [bool(part.isfinite().all()) for part in parts]
