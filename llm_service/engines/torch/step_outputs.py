"""A step's outputs on their way from the device to the host."""

from __future__ import annotations

from typing import NamedTuple

import torch

from llm_service.engines.base import TokenLogprob
from llm_service.engines.torch.prompt_scores import PromptScores, ScoredPrompt
from llm_service.engines.torch.ranked import NO_TOKEN
from llm_service.engines.torch.sampler import Choice
from llm_service.engines.torch.sequence import Sequence
from llm_service.engines.torch.transfer import download


class SampledToken(NamedTuple):
    """The next token of one sequence; `logprob` if its request asks for it.

    It is no token to go on with unless its logits are finite.
    """

    sequence: Sequence
    token_id: int
    logprob: TokenLogprob | None

    @property
    def is_finite(self) -> bool:
        return self.token_id != NO_TOKEN


class StepOutputs:
    """The sampled tokens of one step: copied without waiting, read once they have arrived."""

    def __init__(
        self, sequences: list[Sequence], choice: Choice, scores: PromptScores | None = None
    ) -> None:
        self._sequences = sequences
        self._scores = scores
        self._token_ids = download(choice.told)
        self._logprobs = None if choice.logprobs is None else download(choice.logprobs)
        self._top = None if choice.top is None else download(choice.top)
        self._arrived: torch.cuda.Event | None = None
        if choice.told.is_cuda:
            self._arrived = torch.cuda.current_stream().record_event()

    def read(self) -> list[SampledToken]:
        """Waits for the device, and returns the tokens in the step's order."""
        if self._arrived is not None:
            self._arrived.synchronize()
        token_ids: list[int] = self._token_ids.tolist()
        logprobs = self._token_logprobs(token_ids)
        return list(map(SampledToken, self._sequences, token_ids, logprobs))

    def read_scores(self) -> list[ScoredPrompt]:
        """Returns the scores of the prompts that want them, once `read` has returned."""
        return [] if self._scores is None else self._scores.read()

    def _token_logprobs(self, token_ids: list[int]) -> list[TokenLogprob | None]:
        if self._logprobs is None or self._top is None:
            return [None] * len(token_ids)
        counts = [sequence.params.logprob_count for sequence in self._sequences]
        columns = counts, token_ids, self._logprobs.tolist(), self._top.tolist()
        return [
            None if count is None else _token_logprob(token_id, logprobs, top[:count])
            for count, token_id, logprobs, top in zip(*columns, strict=True)
        ]


def _token_logprob(token_id: int, logprobs: list[float], top: list[int]) -> TokenLogprob:
    chosen, *best = logprobs
    return TokenLogprob(token_id, chosen, tuple(zip(top, best, strict=False)))
