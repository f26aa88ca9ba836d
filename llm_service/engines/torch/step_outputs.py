"""A step's outputs on their way from the device to the host."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from llm_service.engines.base import TokenLogprob
from llm_service.engines.torch.prompt_scores import PromptScores, ScoredPrompt
from llm_service.engines.torch.sampler import Choice
from llm_service.engines.torch.sequence import Sequence
from llm_service.engines.torch.transfer import download


@dataclass(frozen=True)
class SampledToken:
    """The next token of one sequence; `logprob` if its request asks for it.

    It is no token to go on with unless its logits are finite.
    """

    sequence: Sequence
    token_id: int
    logprob: TokenLogprob | None
    is_finite: bool


class StepOutputs:
    """The sampled tokens of one step: copied without waiting, read once they have arrived."""

    def __init__(
        self, sequences: list[Sequence], choice: Choice, scores: PromptScores | None = None
    ) -> None:
        self._sequences = sequences
        self._scores = scores
        self._token_ids = download(choice.token_ids)
        self._peaks = download(choice.peaks)
        self._logprobs = None if choice.logprobs is None else download(choice.logprobs)
        self._top = None if choice.top is None else download(choice.top)
        self._arrived: torch.cuda.Event | None = None
        if choice.token_ids.is_cuda:
            self._arrived = torch.cuda.current_stream().record_event()

    def read(self) -> list[SampledToken]:
        """Waits for the device, and returns the tokens in the step's order."""
        if self._arrived is not None:
            self._arrived.synchronize()
        token_ids: list[int] = self._token_ids.tolist()
        peaks: list[float] = self._peaks.tolist()
        return [
            SampledToken(
                sequence, token_id, self._logprob(index, token_id), math.isfinite(peaks[index])
            )
            for index, (sequence, token_id) in enumerate(
                zip(self._sequences, token_ids, strict=True)
            )
        ]

    def read_scores(self) -> list[ScoredPrompt]:
        """Returns the scores of the prompts that want them, once `read` has returned."""
        return [] if self._scores is None else self._scores.read()

    def _logprob(self, index: int, token_id: int) -> TokenLogprob | None:
        count = self._sequences[index].params.logprob_count
        if count is None or self._logprobs is None or self._top is None:
            return None
        chosen, *best = self._logprobs[index].tolist()
        top = tuple(zip(self._top[index].tolist(), best, strict=True))
        return TokenLogprob(token_id, chosen, top[:count])
