"""A step's inputs on the host: what the scheduled sequences mean in numbers."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import compress
from typing import NamedTuple

import numpy as np
import torch

from llm_service.engines.torch.block_tables import Array, BlockTables
from llm_service.engines.torch.kernels.base import PrefillSpan
from llm_service.engines.torch.prompt_scores import ScoredTokens
from llm_service.engines.torch.sequence import Sequence
from llm_service.engines.torch.transfer import uploaded


@dataclass(frozen=True)
class StepInputs:
    """T tokens of all scheduled sequences; the first D are decodes, each a sequence's next token.

    A sequence's drafts are decodes as well: a step stores all keys before it reads any.

    Attributes:
        sequences: in the order of their tokens, each once more for each draft.
        counts: how many of the tokens are each one's.
        decode_count: D.
        rows: [3, T] int64: token ids, places in their sequences, places in the cache. A token that
            is still in flight has the id -1 - its sequence's slot.
        slots: [sequences] int64, the sequences' slots.
        tables: their block tables, by slot.
        sampled: of `sequences` those whose last token is among the T, or a draft.
        sampled_rows: where those tokens stand.
        scored: tokens of prompts whose log probabilities are wanted.
    """

    sequences: list[Sequence]
    counts: list[int]
    decode_count: int
    rows: Array
    slots: Array
    tables: BlockTables
    sampled: list[Sequence]
    sampled_rows: list[int]
    scored: list[ScoredTokens]

    @classmethod
    def of(cls, scheduled: list[Sequence], tables: BlockTables, vocabulary_size: int) -> StepInputs:
        """Writes down the sequences' scheduled tokens; their block tables are up to date then."""
        decodes, others = _split(scheduled, vocabulary_size)
        sequences = decodes.sequences + others
        slots = tables.slots(sequences)
        decode_count = len(decodes.sequences)
        counts = [1] * decode_count + [sequence.scheduled_count for sequence in others]
        ends = np.cumsum(counts).tolist()
        rows = np.empty((3, ends[-1]), np.int64)
        rows[:2, :decode_count] = decodes.token_ids, decodes.places
        of_others = list(zip(others, ends[decode_count:], strict=True))
        for sequence, end in of_others:
            _write_span(rows[:2, end - sequence.scheduled_count : end], sequence)
        rows[2] = tables.cache_places(np.repeat(slots, counts), rows[1])
        scored = [_scored(sequence, end) for sequence, end in of_others if sequence.unscored_count]
        sampled = [sequence.is_sampled for sequence in sequences]
        return cls(
            sequences=sequences,
            counts=counts,
            decode_count=decode_count,
            rows=rows,
            slots=slots,
            tables=tables,
            sampled=list(compress(sequences, sampled)),
            sampled_rows=list(compress((end - 1 for end in ends), sampled)),
            scored=[tokens for tokens in scored if tokens.token_ids],
        )

    @property
    def token_count(self) -> int:
        """T."""
        return int(self.rows.shape[1])

    @property
    def is_decodes_alone(self) -> bool:
        """Whether every token is a decode, and each is sampled."""
        return self.decode_count == self.token_count == len(self.sampled)

    def block_tables(self, count: int) -> Array:
        """Returns [count, W] int32: see BlockTables.rows."""
        return self.tables.of(self.slots[:count])

    def tiles(self, size: int, begin: int = 0) -> Array:
        """Returns [N, 3] int32: the tokens from the sequence `begin` on, in tiles as TileSet's.

        The decodes come one after the other, each a token. Tiles with longer contexts come first,
        as a rule: a program that begins last should not be the longest.
        """
        first_token, tiles = begin, []
        for row, count in enumerate(self.counts[begin:], begin):
            end = first_token + count
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


class _Decodes(NamedTuple):
    """Of each decode its sequence, its token id and its place in the sequence."""

    sequences: list[Sequence]
    token_ids: list[int]
    places: list[int]


def _split(scheduled: list[Sequence], vocabulary_size: int) -> tuple[_Decodes, list[Sequence]]:
    """Returns the decodes, drafts among them, and the sequences that have none."""
    sequences: list[Sequence] = []
    token_ids: list[int] = []
    places: list[int] = []
    others: list[Sequence] = []
    for sequence in scheduled:
        token_id = _decode_token(sequence, vocabulary_size)
        if token_id is None:
            others.append(sequence)
            continue
        sequences.append(sequence)
        token_ids.append(token_id)
        places.append(sequence.computed_count)
        if drafts := sequence.drafts:
            sequences += [sequence] * len(drafts)
            token_ids += drafts
            places += range(places[-1] + 1, places[-1] + 1 + len(drafts))
    return _Decodes(sequences, token_ids, places), others


def _decode_token(sequence: Sequence, vocabulary_size: int) -> int | None:
    """Returns the one ordinary token that is scheduled, drafts aside.

    None where it is not one, or is scored.
    """
    if sequence.scheduled_count != 1 + len(sequence.drafts) or sequence.unscored_count:
        return None
    place = sequence.computed_count
    if place >= len(sequence.token_ids):
        return -1 - sequence.slot
    token_id = sequence.token_ids[place]
    return token_id if token_id < vocabulary_size else None


def _write_span(rows: Array, sequence: Sequence) -> None:
    begin = sequence.computed_count
    end = begin + sequence.scheduled_count
    rows[0] = sequence.token_ids[begin:end]
    rows[1] = np.arange(begin, end)


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
