"""Which tokens may come next in a guided sequence, computed while other things go on."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import torch

from llm_service.engines.guides import TokenMatcher

# CPU time, above which no step waits for a mask.
SLOW_SECONDS = 0.001


class Mask:
    """One step of a sequence's matcher, and what it says after drafts of further tokens.

    Attributes:
        matcher: the sequence's.
        bits: [1 + drafts, ceil(vocabulary_size / 32)] int32: the next token's, then those after
            each draft; to be read once they have come.
        count: how many of them have been computed.
        is_slow: whether no step waits for it.
        has_come: whether it is there.
        settled: set when all masks that were ordered with it are there, or are slow.
        is_wanted: whether its sequence still goes on; the engine's thread says so.
    """

    def __init__(
        self,
        matcher: TokenMatcher,
        token_ids: Sequence[int],
        drafts: Sequence[int],
        vocabulary_size: int,
        settled: threading.Event,
        *,
        may_end: bool,
    ) -> None:
        """Takes what TokenMatcher.advance and .look_ahead need to know."""
        self.matcher = matcher
        self.bits = torch.empty(1 + len(drafts), -(-vocabulary_size // 32), dtype=torch.int32)
        self.count = 0
        self.is_slow = self.is_expected_slow
        self.has_come = False
        self.settled = settled
        self.is_wanted = True
        self._token_ids = token_ids
        self._drafts = drafts
        self._may_end = may_end

    @property
    def is_expected_slow(self) -> bool:
        """Whether the latest mask was slow, or that of another choice of the request."""
        return self.matcher.expected_seconds > SLOW_SECONDS

    def compute(self) -> None:
        """Computes it: no work for the engine's thread."""
        if not self.is_wanted:
            return
        first, *others = self.bits.unbind()
        self.matcher.advance(self._token_ids, first, may_end=self._may_end)
        self.count = 1 + self.matcher.look_ahead(self._drafts, others)
        self.has_come = True
