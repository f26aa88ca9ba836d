"""The JSON of OpenAI's answers as types, which describe what `answers` writes."""

from __future__ import annotations

from typing import Any, Literal

from typing_extensions import NotRequired, TypedDict

FinishReason = Literal["stop", "length", "tool_calls", "function_call"]


class ErrorDetail(TypedDict):
    """What went wrong.

    `message` is a sentence, `type` its kind, `param` the JSON path of the field at fault, `code` a
    word that programs can go by.
    """

    message: str
    type: str
    param: str | None
    code: str


class ErrorAnswer(TypedDict):
    """An error."""

    error: ErrorDetail


class Token(TypedDict):
    """A token: its text, its bytes, and the natural logarithm of its probability."""

    token: str
    bytes: list[int]
    logprob: float


class TokenWithTop(Token):
    """A token, and the most probable ones in its place."""

    top_logprobs: list[Token]


class Logprobs(TypedDict):
    """One entry for each token of the answer."""

    content: list[TokenWithTop]
    refusal: None


class Function(TypedDict):
    """A call of a function; its arguments are the text of a JSON object."""

    name: str
    arguments: str


class ToolCall(TypedDict):
    """A call of a tool."""

    id: str
    type: Literal["function"]
    function: Function


class AssistantMessage(TypedDict):
    """What the assistant says; null where it only calls tools."""

    role: Literal["assistant"]
    content: str | None
    refusal: None
    tool_calls: NotRequired[list[ToolCall]]
    function_call: NotRequired[Function]


class Choice(TypedDict):
    """One answer."""

    index: int
    message: AssistantMessage
    logprobs: Logprobs | None
    finish_reason: FinishReason


class PromptTokensDetails(TypedDict):
    """Tokens of the prompt that were reused, and those of images."""

    cached_tokens: int
    image_tokens: int


class Usage(TypedDict):
    """Tokens of the prompt and of all choices."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: NotRequired[PromptTokensDetails]


class ChatCompletion(TypedDict):
    """A whole answer."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[Choice]
    usage: Usage


class FunctionDelta(TypedDict):
    """A piece of a function's call."""

    name: NotRequired[str]
    arguments: str


class ToolCallDelta(TypedDict):
    """A piece of a tool's call; its first one has the id and the name."""

    index: int
    id: NotRequired[str]
    type: NotRequired[Literal["function"]]
    function: FunctionDelta


class Delta(TypedDict):
    """What is new."""

    role: NotRequired[Literal["assistant"]]
    content: NotRequired[str | None]
    refusal: NotRequired[None]
    tool_calls: NotRequired[list[ToolCallDelta]]
    function_call: NotRequired[FunctionDelta]


class ChunkChoice(TypedDict):
    """What is new of one answer."""

    index: int
    delta: Delta
    logprobs: Logprobs | None
    finish_reason: FinishReason | None


class ChatCompletionChunk(TypedDict):
    """An event of a streamed answer; after the last comes `[DONE]`, or an error instead of it."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChunkChoice]
    usage: NotRequired[Usage | None]


class Model(TypedDict):
    """A model; `max_model_len` is its context in tokens."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: int


class ModelList(TypedDict):
    """All names of the model."""

    object: Literal["list"]
    data: list[Model]


class Tiles(TypedDict):
    """How a picture is cut, and what it costs; caps are tiles without the thumbnail."""

    object: Literal["tiles"]
    column_count: int
    row_count: int
    tile_count: int
    token_count: int
    tile_size: int
    tile_cap: int
    default_tile_cap: int
    max_tile_cap: int


class Health(TypedDict):
    """Whether the server is there, and by service why not."""

    status: Literal["live", "ready", "not ready"]
    reasons: NotRequired[dict[str, str]]


class Status(TypedDict):
    """What is served, by how many replicas, and how busy they are."""

    object: Literal["status"]
    model: str | None
    max_context_token_count: int | None
    version: str | None
    gateway: dict[str, int]
    vision: dict[str, Any]
    llm: dict[str, Any]
