"""What comes of an answer while it is made: text, calls and ends of its choices, its usage."""

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
class ToolCallDelta:
    """A piece of a call of a tool.

    Attributes:
        call_index: which of the choice's calls, from 0 on.
        name: of the tool, whole; in the call's first piece alone.
        arguments: new text of the arguments; all of a call's pieces together are a JSON object.
    """

    call_index: int
    name: str
    arguments: str


@dataclass(frozen=True)
class PromptLogprobs:
    """The next tokens of the prompt, if asked for; they come before all of the answer.

    Attributes:
        tokens: the first of the prompt has the logarithm 0 and no alternatives.
        index: of the first choice that follows the prompt.
    """

    tokens: tuple[TokenLogprob, ...]
    index: int = 0


@dataclass(frozen=True)
class TextDelta:
    """New text of one choice, and new pieces of its calls of tools, which come after all text.

    Attributes:
        index: of the choice.
        text: may be empty.
        logprobs: of the new tokens, if asked for.
        token_count: how many new tokens there are.
        prompt_token_count: tokens of the prompt; known of a generation's first delta alone.
        tool_calls: what is new of them.
    """

    index: int
    text: str
    logprobs: tuple[TokenLogprob, ...] = ()
    token_count: int = 0
    prompt_token_count: int | None = None
    tool_calls: tuple[ToolCallDelta, ...] = ()


@dataclass(frozen=True)
class Finished:
    """Why one choice ended; the stop string that ended it, if one did."""

    index: int
    reason: FinishReason
    stop_string: str | None = None


@dataclass(frozen=True)
class EngineTimings:
    """Where one generation's time in the LLM service went, by its own clock.

    Attributes:
        queue_seconds: its wait for the engine, once its prompt and images were there.
        prefill_seconds: from there to its first token.
    """

    queue_seconds: float
    prefill_seconds: float

    @property
    def total_seconds(self) -> float:
        return self.queue_seconds + self.prefill_seconds


@dataclass(frozen=True)
class Usage:
    """Tokens of the prompt (of these: reused, and of images) and of the answer.

    The timings are those of one generation whose engine tells them; a sum has none.
    """

    prompt_token_count: int
    output_token_count: int
    cached_token_count: int
    image_token_count: int
    timings: EngineTimings | None = None

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.prompt_token_count + other.prompt_token_count,
            self.output_token_count + other.output_token_count,
            self.cached_token_count + other.cached_token_count,
            self.image_token_count + other.image_token_count,
        )


ChatEvent = PromptLogprobs | TextDelta | Finished | Usage
