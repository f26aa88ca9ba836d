"""The JSON of text completions, and of answers about tokens, as types that describe them."""

from __future__ import annotations

from typing import Literal

from typing_extensions import NotRequired, TypedDict

from gateway.openai.answer_types import Usage


class TokenColumns(TypedDict):
    """One entry for each token: text, log probability, alternatives, and where it begins.

    The prompt's first token has no log probability.
    """

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(TypedDict):
    """One completion."""

    index: int
    text: str
    logprobs: TokenColumns | None
    finish_reason: Literal["stop", "length"]


class Completion(TypedDict):
    """A whole answer."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: Usage


class CompletionPiece(TypedDict):
    """What is new of one completion."""

    index: int
    text: str
    logprobs: TokenColumns | None
    finish_reason: Literal["stop", "length"] | None


class CompletionChunk(TypedDict):
    """An event of a streamed answer; after the last comes `[DONE]`, or an error instead of it."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionPiece]
    usage: NotRequired[Usage | None]


class Tokens(TypedDict):
    """The tokens of a prompt; `max_model_len` is the model's context in tokens."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class TokenizerInfo(TypedDict):
    """What the checkpoint's tokenizer calls its tokens, each null where it has none."""

    bos_token: str | None
    eos_token: str | None
    model_max_length: int


class Text(TypedDict):
    """The text of tokens."""

    prompt: str


class Version(TypedDict):
    """The version of this server."""

    version: str


class Load(TypedDict):
    """How many requests are in flight."""

    server_load: int
