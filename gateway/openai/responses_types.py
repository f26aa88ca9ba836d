"""The JSON of OpenAI's Responses as types, which describe what `responses_answers` writes."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field
from typing_extensions import TypedDict

from gateway.openai.answer_types import ErrorDetail, TokenWithTop

ItemStatus = Literal["in_progress", "completed", "incomplete"]


class OutputText(TypedDict):
    """A text, with the log probabilities of its tokens if these are included."""

    type: Literal["output_text"]
    text: str
    annotations: list[Any]
    logprobs: list[TokenWithTop]


class MessageItem(TypedDict):
    """What the assistant says."""

    type: Literal["message"]
    id: str
    status: ItemStatus
    role: Literal["assistant"]
    content: list[OutputText]


class CallItem(TypedDict):
    """A call of a tool; its arguments are the text of a JSON object."""

    type: Literal["function_call"]
    id: str
    call_id: str
    status: ItemStatus
    name: str
    arguments: str


OutputItem = Annotated[MessageItem | CallItem, Field(discriminator="type")]


class ResponseFailure(TypedDict):
    """What a response has failed by."""

    code: Literal["server_error", "rate_limit_exceeded", "invalid_prompt"]
    message: str


class IncompleteDetails(TypedDict):
    """Why a response is incomplete."""

    reason: Literal["max_output_tokens"]


class InputTokensDetails(TypedDict):
    """Tokens of the input that were reused, and those of images."""

    cached_tokens: int
    cache_write_tokens: int
    image_tokens: int


class OutputTokensDetails(TypedDict):
    """Tokens of the output that are no part of it."""

    reasoning_tokens: int


class ResponseUsage(TypedDict):
    """Tokens of the input and of the output."""

    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class ResponseReasoning(TypedDict):
    """How it was reasoned: not at all."""

    effort: None
    summary: None


class Response(TypedDict):
    """An answer, and what of its request has made it so; nothing of it is stored."""

    id: str
    object: Literal["response"]
    created_at: int
    completed_at: int | None
    status: Literal["in_progress", "completed", "incomplete", "failed"]
    model: str
    error: ResponseFailure | None
    incomplete_details: IncompleteDetails | None
    usage: ResponseUsage | None
    output: list[OutputItem]
    background: Literal[False]
    frequency_penalty: float
    instructions: str | None
    max_output_tokens: int | None
    max_tool_calls: None
    metadata: dict[str, str]
    parallel_tool_calls: bool
    presence_penalty: float
    previous_response_id: None
    prompt_cache_key: str | None
    reasoning: ResponseReasoning
    safety_identifier: str | None
    service_tier: Literal["default"]
    store: Literal[False]
    temperature: float
    text: dict[str, Any]
    tool_choice: str | dict[str, Any]
    tools: list[dict[str, Any]]
    top_logprobs: int
    top_p: float
    truncation: Literal["disabled"]
    user: str | None


class ResponseEvent(TypedDict):
    """The whole as it is: at the begin, and at the end."""

    type: Literal[
        "response.created",
        "response.in_progress",
        "response.completed",
        "response.incomplete",
        "response.failed",
    ]
    sequence_number: int
    response: Response


class ItemEvent(TypedDict):
    """An item begins, or is done."""

    type: Literal["response.output_item.added", "response.output_item.done"]
    sequence_number: int
    output_index: int
    item: OutputItem


class PartEvent(TypedDict):
    """The content of a message begins, or is done."""

    type: Literal["response.content_part.added", "response.content_part.done"]
    sequence_number: int
    item_id: str
    output_index: int
    content_index: int
    part: OutputText


class TextDeltaEvent(TypedDict):
    """New text, and the log probabilities of its tokens if these are included."""

    type: Literal["response.output_text.delta"]
    sequence_number: int
    item_id: str
    output_index: int
    content_index: int
    delta: str
    logprobs: list[TokenWithTop]


class TextDoneEvent(TypedDict):
    """The whole text."""

    type: Literal["response.output_text.done"]
    sequence_number: int
    item_id: str
    output_index: int
    content_index: int
    text: str
    logprobs: list[TokenWithTop]


class ArgumentsDeltaEvent(TypedDict):
    """New text of a call's arguments."""

    type: Literal["response.function_call_arguments.delta"]
    sequence_number: int
    item_id: str
    output_index: int
    delta: str


class ArgumentsDoneEvent(TypedDict):
    """The whole arguments of a call."""

    type: Literal["response.function_call_arguments.done"]
    sequence_number: int
    item_id: str
    output_index: int
    name: str
    arguments: str


class ErrorEvent(TypedDict):
    """What has ended the stream; `response.failed` follows."""

    type: Literal["error"]
    sequence_number: int
    code: str
    message: str
    param: str | None
    error: ErrorDetail


StreamEvent = Annotated[
    ResponseEvent
    | ItemEvent
    | PartEvent
    | TextDeltaEvent
    | TextDoneEvent
    | ArgumentsDeltaEvent
    | ArgumentsDoneEvent
    | ErrorEvent,
    Field(discriminator="type"),
]
