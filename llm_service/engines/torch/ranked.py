"""Logits, and the best of each row."""

from __future__ import annotations

from typing import NamedTuple

import torch

# Stands for a token where logits are not finite.
NO_TOKEN = -1


class Ranked(NamedTuple):
    """The logits of S next tokens, on their device.

    A row is right where some of it is -infinity: their tokens have no probability. It is not where
    it has NaN, +infinity, or nothing but -infinity: nothing is sampled of that.

    Attributes:
        logits: [S, vocabulary_size].
        best: [S] int64, the most probable tokens; of a row that is not right, some token.
        is_finite: [S] bool, whether a row is right.
        told: [S] int64, the most probable tokens as the host gets them: NO_TOKEN where a row is not
            right.
    """

    logits: torch.Tensor
    best: torch.Tensor
    is_finite: torch.Tensor
    told: torch.Tensor

    @classmethod
    def of(cls, logits: torch.Tensor) -> Ranked:
        """Ranks logits [S, vocabulary_size] of any float type."""
        peaks, best = logits.max(-1)
        is_finite = peaks.isfinite()
        return cls(logits, best, is_finite, told(best, is_finite))

    def head(self, count: int) -> Ranked:
        """Returns the first rows."""
        return Ranked(*(part[:count] for part in self))

    def rows(self, rows: torch.Tensor) -> Ranked:
        """Returns some rows, [N] int64."""
        return Ranked(*(part[rows] for part in self))


def told(token_ids: torch.Tensor, is_finite: torch.Tensor) -> torch.Tensor:
    """Returns tokens [S] as the host gets them; see Ranked."""
    return torch.where(is_finite, token_ids, NO_TOKEN)
