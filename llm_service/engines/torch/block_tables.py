"""The block tables of running sequences as arrays, kept from step to step."""

from __future__ import annotations

from array import array
from collections.abc import Sequence as List
from typing import Any

import numpy as np

from llm_service.engines.torch.sequence import Sequence

Array = np.ndarray[Any, np.dtype[Any]]


class BlockTables:
    """A row for each slot, written where its sequence has other blocks than in the step before.

    Attributes:
        rows: [slots, W] int32: the blocks of a slot's sequence, then its first again. What is read
            of a sequence's padding is its own: another's NaN, times 0, would be NaN.
    """

    def __init__(self, slot_count: int, width: int, block_size: int) -> None:
        """Takes W, the blocks of the longest context, and the tokens of a block."""
        self.rows = np.zeros((slot_count, width), np.int32)
        self._block_size = block_size
        # What each row was written from. A sequence that gives its blocks back gets another table.
        self._tables = [array("i")] * slot_count
        self._lengths = [0] * slot_count

    def slots(self, sequences: List[Sequence]) -> Array:
        """Brings the rows of sequences up to date; returns their slots, [S] int64."""
        for sequence in sequences:
            slot, table = sequence.slot, sequence.block_table
            if len(table) != self._lengths[slot] or table is not self._tables[slot]:
                self._write(slot, table)
        return np.array([sequence.slot for sequence in sequences], np.int64)

    def of(self, slots: Array) -> Array:
        """Returns [S, W'] int32: the rows of slots, as far as the longest table reaches."""
        width = max((self._lengths[slot] for slot in slots.tolist()), default=0)
        return self.rows[slots, :width]

    def cache_places(self, slots: Array | int, places: Array) -> Array:
        """Returns [T] int64: block x block size + offset of places [T] in their slots' contexts."""
        blocks, offsets = np.divmod(places, self._block_size)
        places_of_blocks: Array = self.rows[slots, blocks].astype(np.int64) * self._block_size
        return places_of_blocks + offsets

    def _write(self, slot: int, table: array[int]) -> None:
        row = self.rows[slot]
        row[: len(table)] = table
        row[len(table) :] = table[0]
        self._tables[slot], self._lengths[slot] = table, len(table)
