"""Log probabilities of prompts: how likely each token was after those before it."""

from __future__ import annotations

from collections.abc import Sequence as List
from dataclasses import dataclass

import torch

from llm_service.engines.base import LogprobTable
from llm_service.engines.torch.decoder import Decoder
from llm_service.engines.torch.sampler import ranked_logprobs
from llm_service.engines.torch.sequence import Sequence
from llm_service.engines.torch.transfer import download, uploaded

# Logits of so many rows stand at a time: no more than those of as many sequences that are sampled.
ROWS_AT_A_TIME = 64


@dataclass(frozen=True)
class ScoredTokens:
    """Consecutive tokens of a prompt that a step scores.

    Attributes:
        sequence: whose prompt.
        token_ids: the tokens.
        row: the step's token before the first of them, whose logits are its scores.
    """

    sequence: Sequence
    token_ids: list[int]
    row: int

    @property
    def rows(self) -> range:
        """The step's tokens before each of them."""
        return range(self.row, self.row + len(self.token_ids))


@dataclass(frozen=True)
class ScoredPrompt:
    """The scores of some of a prompt's tokens; none to go by unless their logits are finite."""

    sequence: Sequence
    table: LogprobTable
    is_finite: bool


class PromptScores:
    """The scores of N tokens of one step: copied without waiting, read once they have arrived."""

    def __init__(self, decoder: Decoder, states: torch.Tensor, scored: List[ScoredTokens]) -> None:
        """Computes them.

        Args:
            decoder: gives the logits.
            states: [N, hidden_size], the final hidden states before each token.
            scored: the tokens.
        """
        self._scored = scored
        # One at least: it tells whether the logits are finite.
        count = max(1, *(tokens.sequence.params.logprob_count or 0 for tokens in scored))
        all_ids = [token_id for tokens in scored for token_id in tokens.token_ids]
        token_ids = uploaded(all_ids, torch.int64, states.device)
        parts = [
            ranked_logprobs(token_ids[rows], decoder.logits(states[rows]).float(), count)
            for rows in map(_rows, range(0, len(states), ROWS_AT_A_TIME))
        ]
        logprobs, top = zip(*parts, strict=True)
        self._logprobs, self._top = download(torch.cat(logprobs)), download(torch.cat(top))

    def read(self) -> list[ScoredPrompt]:
        """Returns those of each prompt; they have arrived."""
        counts = [len(tokens.token_ids) for tokens in self._scored]
        columns = self._scored, torch.split(self._logprobs, counts), torch.split(self._top, counts)
        return [_scored_prompt(*column) for column in zip(*columns, strict=True)]


def _rows(begin: int) -> slice:
    return slice(begin, begin + ROWS_AT_A_TIME)


def _scored_prompt(tokens: ScoredTokens, logprobs: torch.Tensor, top: torch.Tensor) -> ScoredPrompt:
    count = tokens.sequence.params.logprob_count or 0
    # Copies: the step's memory is page-locked, and larger.
    table = LogprobTable(tokens.token_ids, logprobs[:, : 1 + count].clone(), top[:, :count].clone())
    is_finite = bool(logprobs[:, 1].isfinite().all())
    return ScoredPrompt(tokens.sequence, table, is_finite)
