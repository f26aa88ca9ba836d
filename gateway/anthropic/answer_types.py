"""The JSON of Anthropic's answers as types, which describe what `answers` and `errors` write."""

from __future__ import annotations

from typing import Any, Literal

from typing_extensions import NotRequired, TypedDict

StopReason = Literal["end_turn", "max_tokens", "stop_sequence", "tool_use"]


class MessageErrorDetail(TypedDict):
    """What went wrong: its kind, a sentence that begins with the field, and words for the SDK."""

    type: str
    message: str
    details: NotRequired[dict[str, str]]


class MessageError(TypedDict):
    """An error."""

    type: Literal["error"]
    error: MessageErrorDetail
    request_id: str


class InputTokens(TypedDict):
    """The tokens of a prompt."""

    input_tokens: int


class MessageUsage(TypedDict):
    """Tokens of the prompt that were computed and that were reused, and of the answer."""

    input_tokens: int
    cache_creation_input_tokens: int
    cache_read_input_tokens: int
    output_tokens: int


class WrittenText(TypedDict):
    """A text."""

    type: Literal["text"]
    text: str


class ToolUse(TypedDict):
    """A call of a tool."""

    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]


class MessageAnswer(TypedDict):
    """A whole answer, or the begin of a streamed one."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[WrittenText | ToolUse]
    stop_reason: StopReason | None
    stop_sequence: str | None
    usage: MessageUsage


class MessageStart(TypedDict):
    """The first event; its usage is that of the prompt."""

    type: Literal["message_start"]
    message: MessageAnswer


class Ping(TypedDict):
    """An event that says nothing."""

    type: Literal["ping"]


class BlockStart(TypedDict):
    """The begin of a block of the content, still empty."""

    type: Literal["content_block_start"]
    index: int
    content_block: WrittenText | ToolUse


class TextPiece(TypedDict):
    """New text."""

    type: Literal["text_delta"]
    text: str


class InputPiece(TypedDict):
    """New JSON text of a call's input."""

    type: Literal["input_json_delta"]
    partial_json: str


class BlockDelta(TypedDict):
    """What comes next of a block."""

    type: Literal["content_block_delta"]
    index: int
    delta: TextPiece | InputPiece


class BlockStop(TypedDict):
    """The end of a block."""

    type: Literal["content_block_stop"]
    index: int


class Stop(TypedDict):
    """Why the message ended."""

    stop_reason: StopReason
    stop_sequence: str | None


class MessageDelta(TypedDict):
    """Why the message ended, and its whole usage."""

    type: Literal["message_delta"]
    delta: Stop
    usage: MessageUsage


class MessageStop(TypedDict):
    """The last event."""

    type: Literal["message_stop"]


MessageEvent = (
    MessageStart
    | Ping
    | BlockStart
    | BlockDelta
    | BlockStop
    | MessageDelta
    | MessageStop
    | MessageError
)
