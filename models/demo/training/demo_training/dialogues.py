"""Dialogues: conversations as token ids, laid out as the LLM service lays out its prompts."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from demo_training.samples import Turn
from demo_training.scores import Label
from llm_service.conversation import Message, Role
from llm_service.pieces import ImagePart
from llm_service.prompt import chat_layout
from llm_service.templates import INTERNVL2_5
from llm_service.tokenizer import MESSAGE_END, Tokenizer

IGNORED = -100  # what cross_entropy leaves out by default

Int64Array = npt.NDArray[np.int64]
# The token ids before each picture; a prompt's pictures stand between them and what follows.
Prefix = tuple[tuple[int, ...], ...]


class MemoTokenizer(Tokenizer):
    """A tokenizer that remembers texts: the same questions come again and again."""

    @functools.lru_cache(maxsize=50_000)  # noqa: B019 - one lives as long as its process
    def encode(self, text: str) -> list[int]:
        """See Tokenizer; the list is shared, so callers must not change it."""
        return super().encode(text)


@dataclass(frozen=True)
class Dialogue:
    """A conversation as tokens, parted where its last picture ends.

    Attributes:
        prefix: the token ids before each picture.
        token_ids: [n], the ids after the last picture, up to what is said last.
        targets: [n], the token to be said next, or IGNORED.
        owners: [n], the turn that a target belongs to, or IGNORED.
        labels: of each turn.
    """

    prefix: Prefix
    token_ids: Int64Array
    targets: Int64Array
    owners: Int64Array
    labels: list[Label]


def encode_dialogue(
    tokenizer: Tokenizer, turns: Iterable[Turn], image_count: int, system: str | None
) -> Dialogue:
    """Lays out a conversation whose first question has all the images."""
    messages = [] if system is None else [Message(Role.SYSTEM, (system,))]
    spans: list[tuple[int, list[int]]] = []
    labels: list[Label] = []
    parts: Prefix = ((),)
    answer: list[int] = []
    for turn in turns:
        images = [] if labels else [ImagePart()] * image_count
        messages.append(Message(Role.USER, (*images, turn.question)))
        parts = chat_layout(tokenizer, INTERNVL2_5, messages).segments
        answer = [*tokenizer.encode(turn.answer), tokenizer.special_id(MESSAGE_END)]
        spans.append((len(parts[-1]) - 1, answer))
        labels.append((turn.task, turn.language, turn.form))
        messages.append(Message(Role.ASSISTANT, (turn.answer,)))
    token_ids = np.array([*parts[-1], *answer[:-1]])
    targets, owners = np.full((2, len(token_ids)), IGNORED)
    for index, (start, said) in enumerate(spans):
        targets[start : start + len(said)] = said
        owners[start : start + len(said)] = index
    return Dialogue(parts[:-1], token_ids, targets, owners, labels)
