"""Prompts of random tokens for the engine benchmarks."""

from __future__ import annotations

import random
from dataclasses import replace

import torch

from llm_service.checkpoint import LLMConfig
from llm_service.engines.base import ImageRows, Prompt
from protos.identity import EmbeddingId

# How far the lengths of prompts may be from the one that they are around.
LENGTH_SPREAD = 24
# About what the chat template has before the first image, and a question after it.
HEAD_TOKEN_COUNT, QUESTION_TOKEN_COUNT = 40, 15


class Prompts:
    """Makes prompts, no two alike, so that none finds another's tokens in the KV cache."""

    def __init__(self, config: LLMConfig, dtype: torch.dtype, max_row_count: int) -> None:
        self._random = random.Random(0)
        self._vocabulary_size = config.vocabulary_size
        # As large as the embedding's rows. All images share the values; their names differ.
        rows = torch.randn(max_row_count, config.hidden_size) * config.hidden_size**-0.5
        self._rows = rows.to(dtype)

    def lengths(self, token_count: int, pair_count: int) -> list[int]:
        """Returns twice so many lengths, no two alike and none token_count, which is their mean."""
        spread = range(1, 1 + min(LENGTH_SPREAD, token_count - 1))
        offsets = self._random.sample(spread, pair_count)
        lengths = [token_count + sign * offset for offset in offsets for sign in (1, -1)]
        self._random.shuffle(lengths)
        return lengths

    def text(self, token_count: int) -> Prompt:
        """Returns a prompt without images."""
        return Prompt(self._token_ids(token_count), self._rows[:0])

    def first_turn(
        self, row_count: int, question_token_count: int = QUESTION_TOKEN_COUNT
    ) -> Prompt:
        """Returns a question about an image of so many rows that nobody has seen before."""
        virtual = range(self._vocabulary_size, self._vocabulary_size + row_count)
        head, question = map(self._token_ids, (HEAD_TOKEN_COUNT, question_token_count))
        embedding_id = EmbeddingId(self._random.randbytes(32), recipe_sha256=bytes(32))
        image = ImageRows(embedding_id, row_count)
        return Prompt([*head, *virtual, *question], self._rows[:row_count], (image,))

    def next_turn(self, prompt: Prompt, answer: list[int]) -> Prompt:
        """Returns the conversation with its answer and a further question."""
        question = self._token_ids(QUESTION_TOKEN_COUNT)
        return replace(prompt, token_ids=[*prompt.token_ids, *answer, *question])

    def _token_ids(self, count: int) -> list[int]:
        return self._random.choices(range(self._vocabulary_size), k=count)
