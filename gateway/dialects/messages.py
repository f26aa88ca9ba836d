"""POST /v1/messages and /v1/messages/count_tokens: Anthropic's Messages."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from pydantic import BaseModel

from gateway.anthropic.answer_types import InputTokens, MessageAnswer, MessageError, MessageEvent
from gateway.anthropic.answers import StreamedMessage, WholeMessage
from gateway.anthropic.errors import error_body
from gateway.anthropic.known_fields import (
    BLOCK,
    MESSAGE,
    OUTPUT_CONFIG,
    OUTPUT_FORMAT,
    REQUEST,
    SOURCE,
    TOOL,
    TOOL_CHOICE,
)
from gateway.anthropic.rate_headers import rate_headers
from gateway.anthropic.requests import (
    Block,
    ImageSource,
    MessageParam,
    MessagesRequest,
    OutputConfig,
    OutputFormat,
    Piece,
    PromptRequest,
    ToolChoiceParam,
    ToolParam,
    parse_request,
)
from gateway.dialects.base import Dialect
from gateway.dialects.chat import PICTURE
from gateway.dialects.message_turns import Conversation
from gateway.fields import Option, Options, limit, none_if_all, signed
from gateway.generation import GenerationRequest, ImageReference
from gateway.openai.answers import AnswerHead
from gateway.openai.known_fields import Section
from gateway.openapi.operation import OF_BODIES, Operation
from gateway.tools import Tool, ToolChoice

# Where a base64 image may be: in a message, and in a tool's result.
CONTENT = (b"messages", None, b"content", None)
IMAGE_PLACES = frozenset(
    (*above, b"source", name)
    for above in (CONTENT, (*CONTENT, b"content", None))
    for name in (b"data", b"url")
)


def _definitions(tools: Sequence[Tool]) -> list[dict[str, Any]]:
    return [asdict(tool) for tool in tools]


def _place_in_tools(_: object, rest: str) -> str:
    """Turns "[1].parameters" into "[1].input_schema"."""
    return rest.replace(".parameters", ".input_schema")


def _place_in_choice(_: object, rest: str) -> str:
    return ".name" if rest.startswith(".names") else ""


# GenerateStart, of a PromptRequest, but for its turns.
PROMPT = (
    Option("chat.tools", "tools", _definitions, _place_in_tools, source="offered_tools"),
    Option(
        "guided.tool_calls",
        "tool_choice",
        ToolChoice.guide,
        _place_in_choice,
        source="choice_of_tools",
    ),
    Option("guided.json_schema", "output_config.format.schema"),
    Option("guided.json_schema", "output_format.schema"),
)
OPTIONS: dict[type[PromptRequest], Options] = {
    PromptRequest: Options(*PROMPT),
    MessagesRequest: Options(
        *PROMPT,
        Option("sampling.temperature", "temperature"),
        Option("sampling.top_p", "top_p"),
        Option("sampling.top_k", "top_k", none_if_all),
        Option("sampling.min_p", "min_p"),
        Option("sampling.seed", "seed", signed),
        Option("sampling.repetition_penalty", "repetition_penalty"),
        Option("stop.max_token_count", "max_tokens", limit),
        Option("stop.strings", "stop_sequences"),
        Option("priority", "priority", operator.neg),  # the lowest comes first, as vLLM has it
        Option("cache_salt", "cache_salt"),
        Option("skip_special_tokens", "skip_special_tokens"),
    ),
}


def _image(path: str, piece: Piece) -> ImageReference:
    """Returns an image as the services are asked for it."""
    assert piece.image
    assert piece.source
    places = {"url": f"{path}.source.{piece.source.field}"}
    return ImageReference(piece.image, lambda name: places.get(name, f"{path}.{name}"))


@dataclass(frozen=True)
class MessagesCall:
    """A request for a message, or for the count of its prompt's tokens."""

    request: PromptRequest
    conversation: Conversation

    @property
    def generations(self) -> Sequence[GenerationRequest]:
        fields = OPTIONS[type(self.request)].values(self.request)
        return [
            GenerationRequest(
                model=self.request.model,
                fields={"chat.messages": self.conversation.turns, **fields},
                name_field=self._name,
                images=[_image(*image) for image in self.conversation.images],
            )
        ]

    def _name(self, field: str) -> str:
        named = OPTIONS[type(self.request)].param_of(self.request, field)
        return named or self.conversation.place_of(field)

    @property
    def stream(self) -> bool:
        return isinstance(self.request, MessagesRequest) and bool(self.request.stream)

    @property
    def ignored_fields(self) -> str | None:
        return self.request.ignored_fields

    def whole(self, head: AnswerHead) -> WholeMessage:
        return WholeMessage(head)

    def streamed(self, head: AnswerHead) -> StreamedMessage:
        return StreamedMessage(head)


def _parse(model: type[PromptRequest], body: bytes, strict_fields: bool) -> MessagesCall:
    request = parse_request(model, body, strict_fields)
    return MessagesCall(request, Conversation(request))


def _dialect(path: str, model: type[PromptRequest], operation: Operation) -> Dialect:
    return Dialect(
        path,
        partial(_parse, model),
        error_body,
        operation,
        answer_id_prefix="msg_",
        request_id_key="request-id",
        rate_headers=rate_headers,
        image_places=IMAGE_PLACES,
    )


SECTIONS: dict[type[BaseModel], Section] = {
    MessageParam: MESSAGE,
    Block: BLOCK,
    ImageSource: SOURCE,
    ToolParam: TOOL,
    ToolChoiceParam: TOOL_CHOICE,
    OutputConfig: OUTPUT_CONFIG,
    OutputFormat: OUTPUT_FORMAT,
}
FILE = PICTURE.removeprefix("data:image/png;base64,")
SOURCE_OF_FILE = {"type": "base64", "media_type": "image/png", "data": FILE}
QUESTION: list[dict[str, Any]] = [{"role": "user", "content": "What is a panda?"}]
ABOUT_A_PICTURE: list[dict[str, Any]] = [
    {
        "role": "user",
        "content": [
            {"type": "image", "source": SOURCE_OF_FILE},
            {"type": "text", "text": "What do you see?"},
        ],
    }
]
TOOLS: list[dict[str, Any]] = [
    {
        "name": "favourite_food",
        "description": "Says what an animal likes to eat.",
        "input_schema": {
            "type": "object",
            "properties": {"animal": {"enum": ["cat", "dog", "panda"]}},
            "required": ["animal"],
        },
    }
]
EXAMPLES: dict[str, dict[str, Any]] = {
    "text": {"messages": QUESTION, "system": "Be brief.", "max_tokens": 32},
    "picture": {"messages": ABOUT_A_PICTURE, "max_tokens": 32},
    "stream": {
        "messages": ABOUT_A_PICTURE,
        "max_tokens": 32,
        "stream": True,
        "tools": TOOLS,
        "tool_choice": {"type": "any"},
    },
}
MESSAGES = _dialect(
    "/v1/messages",
    MessagesRequest,
    Operation(
        "Answer a conversation with pictures, as Anthropic's Messages",
        MessageAnswer,
        request=MessagesRequest,
        event=MessageEvent,
        names_events=True,
        examples=EXAMPLES,
        errors=OF_BODIES,
        sections={MessagesRequest: REQUEST, **SECTIONS},
        error=MessageError,
    ),
)
# Not a generation: its answer is a count.
MESSAGES_COUNT = _dialect(
    "/v1/messages/count_tokens",
    PromptRequest,
    Operation(
        "The tokens of a conversation, as Anthropic counts them",
        InputTokens,
        request=PromptRequest,
        examples={"picture": {"messages": ABOUT_A_PICTURE, "tools": TOOLS}},
        errors=OF_BODIES,
        sections={PromptRequest: REQUEST, **SECTIONS},
        error=MessageError,
        description="Pictures are counted, and not encoded.",
    ),
)
