"""The memory through which tiles go to an engine's process, and embeddings come back."""

from __future__ import annotations

import math
import mmap
from dataclasses import dataclass

import torch

from vision_service.engines.base import DTYPES
from vision_service.engines.process.messages import SlotLayout

# As many batches as an engine has in flight.
SLOT_COUNT = 2
# Tensors begin at multiples of it.
ALIGNMENT = 4096


@dataclass(frozen=True)
class Slot:
    """The room of one batch.

    Attributes:
        tiles: [max tiles, 3, tile_size, tile_size] uint8.
        rows: [max tiles, tokens_per_tile, hidden] of the engine's dtype.
    """

    tiles: torch.Tensor
    rows: torch.Tensor


class SlotMemory:
    """The slots in a file that two processes map.

    Attributes:
        slots: SLOT_COUNT of them.
        whole: [bytes] uint8, all of the memory.
    """

    def __init__(self, number: int, layout: SlotLayout) -> None:
        """Maps the file of a descriptor, which may be closed afterwards.

        Raises:
            OSError, ValueError: it cannot be mapped, or is too small.
        """
        pages = mmap.mmap(number, byte_count(layout))
        self.whole = torch.frombuffer(pages, dtype=torch.uint8)
        size = len(self.whole) // SLOT_COUNT
        self.slots = [_slot(part, layout) for part in torch.split(self.whole, size)]


def byte_count(layout: SlotLayout) -> int:
    """Returns what the slots take."""
    return SLOT_COUNT * (_aligned(_tiles_byte_count(layout)) + _aligned(_rows_byte_count(layout)))


def _slot(memory: torch.Tensor, layout: SlotLayout) -> Slot:
    tiles = memory[: _tiles_byte_count(layout)]
    begin = _aligned(len(tiles))
    rows = memory[begin : begin + _rows_byte_count(layout)].view(DTYPES[layout.dtype])
    return Slot(tiles.view(_tiles_shape(layout)), rows.view(_rows_shape(layout)))


def _tiles_shape(layout: SlotLayout) -> tuple[int, ...]:
    return layout.max_tile_count, 3, layout.tile_size, layout.tile_size


def _rows_shape(layout: SlotLayout) -> tuple[int, ...]:
    return layout.max_tile_count, layout.tokens_per_tile, layout.hidden_size


def _tiles_byte_count(layout: SlotLayout) -> int:
    return math.prod(_tiles_shape(layout))


def _rows_byte_count(layout: SlotLayout) -> int:
    return math.prod(_rows_shape(layout)) * DTYPES[layout.dtype].itemsize


def _aligned(count: int) -> int:
    return -(-count // ALIGNMENT) * ALIGNMENT
