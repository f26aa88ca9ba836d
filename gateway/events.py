"""What comes of an answer while it is generated: text and ends of its choices, and its usage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class TokenLogprob:
    """A token's bytes and log probability; `top` is the most probable tokens' in its place."""

    token: bytes
    logprob: float
    top: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True)
class TextDelta:
    """New text of one choice.

    Attributes:
        index: of the choice.
        text: may be empty.
        logprobs: of the new tokens, if asked for.
        token_count: how many new tokens there are.
        prompt_token_count: tokens of the prompt; known of an answer's first delta alone.
    """

    index: int
    text: str
    logprobs: tuple[TokenLogprob, ...] = ()
    token_count: int = 0
    prompt_token_count: int | None = None


@dataclass(frozen=True)
class Finished:
    """Why one choice ended."""

    index: int
    reason: FinishReason


@dataclass(frozen=True)
class Usage:
    """Tokens of the prompt (of these: reused, and of images) and of the answer."""

    prompt_token_count: int
    output_token_count: int
    cached_token_count: int
    image_token_count: int


ChatEvent = TextDelta | Finished | Usage
