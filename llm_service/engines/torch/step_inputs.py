"""A step's inputs on the host: what the scheduled sequences mean in numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from llm_service.engines.torch.kernels.base import PrefillSpan
from llm_service.engines.torch.prompt_scores import ScoredTokens
from llm_service.engines.torch.sequence import Sequence
from llm_service.engines.torch.transfer import uploaded

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class StepInputs:
    """T tokens of all scheduled sequences; the first D are decodes, one of each of D sequences.

    Attributes:
        sequences: in the order of their tokens.
        decode_count: D.
        rows: [3, T] int64: token ids, places in their sequences, places in the cache. A token that
            is still in flight has the id -1 - its sequence's slot.
        sampled: the sequences whose last token is among the T, each once more for each draft.
        sampled_rows: where those tokens stand, and the drafts after them.
        scored: tokens of prompts whose log probabilities are wanted.
    """

    sequences: list[Sequence]
    decode_count: int
    rows: Array
    sampled: list[Sequence]
    sampled_rows: list[int]
    scored: list[ScoredTokens]

    @classmethod
    def of(cls, scheduled: list[Sequence], block_size: int, vocabulary_size: int) -> StepInputs:
        """Writes down the sequences' scheduled tokens."""
        decodes: list[Sequence] = []
        others: list[Sequence] = []
        for sequence in scheduled:
            kind = decodes if _is_decode(sequence, vocabulary_size) else others
            kind.append(sequence)
        sequences = decodes + others
        ends = np.cumsum([sequence.scheduled_count for sequence in sequences])
        rows = np.empty((3, ends[-1]), np.int64)
        for index, sequence in enumerate(decodes):
            rows[:, index] = _decode_row(sequence, block_size)
        for sequence, end in zip(others, ends[len(decodes) :], strict=True):
            _write_span(rows[:, end - sequence.scheduled_count : end], sequence, block_size)
        of_others = zip(others, ends[len(decodes) :].tolist(), strict=True)
        scored = [_scored(sequence, end) for sequence, end in of_others if sequence.unscored_count]
        sampled: list[Sequence] = []
        sampled_rows: list[int] = []
        for sequence, end in zip(sequences, ends.tolist(), strict=True):
            if sequence.is_sampled:
                count = 1 + len(sequence.drafts)
                sampled += [sequence] * count
                sampled_rows += range(end - count, end)
        return cls(
            sequences=sequences,
            decode_count=len(decodes),
            rows=rows,
            sampled=sampled,
            sampled_rows=sampled_rows,
            scored=[tokens for tokens in scored if tokens.token_ids],
        )

    @property
    def token_count(self) -> int:
        """T."""
        return int(self.rows.shape[1])

    def block_tables(self, count: int) -> Array:
        """Returns [count, W] int32: the blocks of the first sequences, then their first again.

        What is read of a sequence's padding is its own: another's NaN, times 0, would be NaN.
        """
        tables = [sequence.block_table for sequence in self.sequences[:count]]
        joined = np.zeros((count, max(map(len, tables), default=0)), np.int32)
        for row, table in zip(joined, tables, strict=True):
            row[: len(table)] = table
            row[len(table) :] = table[0]
        return joined

    def tiles(self, size: int, begin: int = 0) -> Array:
        """Returns [N, 3] int32: the tokens from the sequence `begin` on, in tiles as TileSet's.

        The decodes come one after the other, each a token. Tiles with longer contexts come first,
        as a rule: a program that begins last should not be the longest.
        """
        first_token, tiles = begin, []
        for row, sequence in enumerate(self.sequences[begin:], begin):
            end = first_token + sequence.scheduled_count
            tiles += [
                (first, min(size, end - first), row) for first in range(first_token, end, size)
            ]
            first_token = end
        return np.array(tiles[::-1], np.int32).reshape(-1, 3)

    def spans(self, device: torch.device, block_size: int) -> tuple[PrefillSpan, ...]:
        """Returns the sequences after the decodes as the kernels see them."""
        return tuple(
            _span(sequence, device, block_size) for sequence in self.sequences[self.decode_count :]
        )


def _is_decode(sequence: Sequence, vocabulary_size: int) -> bool:
    """Whether one ordinary token is scheduled: no row of the prompt table, and none to score."""
    place = sequence.computed_count
    if sequence.scheduled_count != 1 or sequence.unscored_count:
        return False
    return place >= len(sequence.token_ids) or sequence.token_ids[place] < vocabulary_size


def _decode_row(sequence: Sequence, block_size: int) -> tuple[int, int, int]:
    place = sequence.computed_count
    token_ids = sequence.token_ids
    token_id = token_ids[place] if place < len(token_ids) else -1 - sequence.slot
    block, offset = divmod(place, block_size)
    return token_id, place, sequence.block_table[block] * block_size + offset


def _write_span(rows: Array, sequence: Sequence, block_size: int) -> None:
    begin = sequence.computed_count
    end = begin + sequence.scheduled_count
    places = np.arange(begin, end)
    blocks = np.array(sequence.block_table, np.int64)
    rows[0] = _scheduled_ids(sequence)
    rows[1] = places
    rows[2] = blocks[places // block_size] * block_size + places % block_size


def _scheduled_ids(sequence: Sequence) -> list[int]:
    begin = sequence.computed_count
    known = sequence.token_ids[begin : begin + sequence.scheduled_count]
    if len(known) == sequence.scheduled_count:
        return known
    return [*(known or [-1 - sequence.slot]), *sequence.drafts]


def _scored(sequence: Sequence, end: int) -> ScoredTokens:
    """Returns what is scored of a sequence whose tokens end before the row `end`."""
    places = sequence.scored_places
    row = end - sequence.scheduled_count + places.start - sequence.computed_count
    token_ids = sequence.token_ids[places.start + 1 : places.stop + 1]
    return ScoredTokens(sequence, token_ids, row)


def _span(sequence: Sequence, device: torch.device, block_size: int) -> PrefillSpan:
    end = sequence.computed_count + sequence.scheduled_count
    blocks = sequence.block_table[: -(-end // block_size)]
    return PrefillSpan(sequence.scheduled_count, end, uploaded(blocks, torch.int64, device))
