"""What the penalties of running sequences look at."""

from __future__ import annotations

from collections.abc import Sequence as List

import torch

from llm_service.engines.torch.sequence import Sequence
from llm_service.engines.torch.transfer import uploaded


class TokenHistories:
    """The tokens that running sequences have had, a row a slot, on the logits' device.

    There are rows up to the last slot that has needed one.

    Attributes:
        counts: [rows, vocabulary_size] float32, occurrences in the output.
        seen: [rows, vocabulary_size] bool, whether in the prompt's text or the output.
    """

    def __init__(self, vocabulary_size: int, device: torch.device) -> None:
        self.counts = torch.zeros(0, vocabulary_size, device=device)
        self.seen = torch.zeros(0, vocabulary_size, dtype=torch.bool, device=device)
        self._marks: dict[int, object] = {}

    def rows(self, sequences: List[Sequence]) -> torch.Tensor:
        """Returns the rows of sequences, [S] int64; those that have none yet are begun."""
        for sequence in sequences:
            if sequence.history is None or self._marks.get(sequence.slot) is not sequence.history:
                self._begin(sequence)
        slots = [sequence.slot for sequence in sequences]
        return uploaded(slots, torch.int64, self.counts.device)

    def add(self, rows: torch.Tensor, token_ids: torch.Tensor) -> None:
        """Takes one more token of each of so many rows, both [S] int64."""
        self.seen[rows, token_ids] = True
        self.counts[rows, token_ids] += 1

    def _begin(self, sequence: Sequence) -> None:
        """Counts a sequence's tokens; virtual ones, which have no logit, are left out."""
        slot = sequence.slot
        self._grow(slot + 1)
        self._marks[slot] = sequence.history = object()
        vocabulary_size = self.counts.shape[1]
        known = [token_id for token_id in sequence.token_ids if token_id < vocabulary_size]
        token_ids = uploaded(known, torch.int64, self.counts.device)
        self.seen[slot] = False
        self.seen[slot, token_ids] = True
        generated = token_ids[len(known) - len(sequence.token_ids) + sequence.prompt_length :]
        counts = self.counts[slot].zero_()
        counts.index_add_(0, generated, counts.new_ones(len(generated)))

    def _grow(self, count: int) -> None:
        if (missing := count - len(self.counts)) > 0:
            self.counts, self.seen = (
                torch.cat([part, part.new_zeros(max(missing, len(part)), part.shape[1])])
                for part in (self.counts, self.seen)
            )
