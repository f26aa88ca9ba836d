"""One request inside the engine: its tokens, its blocks of the KV cache, how far it has come."""

from __future__ import annotations

from enum import Enum, auto

import torch

from llm_service.engines import FinishReason, Prompt
from llm_service.sampling import SamplingParams


class Status(Enum):
    """Where a sequence is in its life."""

    WAITING = auto()
    RUNNING = auto()
    FINISHED = auto()


class Sequence:
    """A prompt and its output so far; owned by the engine's thread once it is added.

    Attributes:
        token_ids: prompt, then output; ids from the vocabulary size on are virtual tokens.
        prompt_length: how many of them are the prompt.
        prompt_table: [rows, hidden_size], what the virtual tokens stand for.
        generator: this sequence's own random numbers, so that a seed gives the same tokens
            whatever else is in the batch.
        block_table: the KV cache blocks that it holds, in token order.
        computed_count: leading tokens whose keys and values are in the cache.
        scheduled_count: tokens after those that the present step computes.
        finish_reason: why it ended; None while it goes on.
    """

    def __init__(self, prompt: Prompt, params: SamplingParams, max_tokens: int) -> None:
        self.token_ids = list(prompt.token_ids)
        self.prompt_length = len(prompt.token_ids)
        self.prompt_table = prompt.prompt_table
        self.params = params
        self.generator = torch.Generator()
        if params.seed is None:
            self.generator.seed()
        else:
            self.generator.manual_seed(params.seed)
        self.status = Status.WAITING
        self.block_table: list[int] = []
        self.computed_count = 0
        self.scheduled_count = 0
        self.finish_reason: FinishReason | None = None
        self._max_length = self.prompt_length + max_tokens

    @property
    def output_token_ids(self) -> list[int]:
        """The tokens generated so far."""
        return self.token_ids[self.prompt_length :]

    @property
    def uncomputed_count(self) -> int:
        """Tokens whose keys and values are not in the cache yet."""
        return len(self.token_ids) - self.computed_count

    @property
    def is_sampled(self) -> bool:
        """Whether the present step reaches the last token, whose logits give the next one."""
        return self.scheduled_count == self.uncomputed_count

    @property
    def scheduled_token_ids(self) -> list[int]:
        """The tokens that the present step computes."""
        return self.token_ids[self.computed_count : self.computed_count + self.scheduled_count]

    def mark_computed(self) -> None:
        """Counts the step's tokens as being in the cache."""
        self.computed_count += self.scheduled_count
        self.scheduled_count = 0

    def append(self, token_id: int) -> None:
        """Adds a generated token and decides whether it is the last."""
        self.token_ids.append(token_id)
        if token_id in self.params.stop_token_ids:
            self.finish_reason = "stop"
        elif len(self.token_ids) >= self._max_length:
            self.finish_reason = "length"
