"""POST /v1/chat/completions: OpenAI's chat."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from pydantic import BaseModel

from gateway.dialects.base import Dialect, openai_error
from gateway.fields import CHAT
from gateway.generation import GenerationRequest, ImageReference
from gateway.openai.answer_types import ChatCompletion, ChatCompletionChunk
from gateway.openai.answers import AnswerHead, StreamedAnswer, WholeAnswer
from gateway.openai.calls import CallForm, OlderCall, ToolCalls
from gateway.openai.forms import JSONSchemaFormat, ResponseFormat, StructuredOutputs
from gateway.openai.known_fields import (
    FUNCTION,
    IMAGE_URL,
    JSON_SCHEMA,
    MESSAGE,
    PART,
    RESPONSE_FORMAT,
    STREAM_OPTIONS,
    STRUCTURED_OUTPUTS,
    TOOL,
    TOOL_CHOICE,
    TOP_LEVEL,
    Section,
)
from gateway.openai.options import StreamOptions
from gateway.openai.requests import (
    ChatCompletionRequest,
    ContentPart,
    ImageURL,
    Message,
    parse_chat_request,
)
from gateway.openai.tools import ChosenTools, FunctionDefinition, ToolDefinition
from gateway.openapi.operation import OF_BODIES, Operation

# A red square of 28 x 28 pixels.
PICTURE = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAABwAAAAcCAIAAAD9b0jDAAAAKElEQVR42mM8oaHBQG3AxEAD"
    "MGroqKGjho4aOmroqKGjho4aOvgMBQA30QFQXvLwsQAAAABJRU5ErkJggg=="
)
# Where an image may be; it is an object, or its URL alone.
IMAGE = (b"messages", None, b"content", None, b"image_url")
IMAGE_PLACES = frozenset({IMAGE, (*IMAGE, b"url")})
EXAMPLES: dict[str, dict[str, Any]] = {
    "text": {"messages": [{"role": "user", "content": "What is a panda?"}], "max_tokens": 32},
    "picture": {
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "What do you see?"},
                    {"type": "image_url", "image_url": {"url": PICTURE, "detail": "low"}},
                ],
            }
        ],
        "max_tokens": 32,
    },
    "stream": {
        "messages": [{"role": "user", "content": "What is a panda?"}],
        "stream": True,
        "stream_options": {"include_usage": True},
    },
    "json": {
        "messages": [{"role": "user", "content": "Name an animal, as JSON."}],
        "response_format": {
            "type": "json_schema",
            "json_schema": {
                "name": "animal",
                "schema": {
                    "type": "object",
                    "properties": {"name": {"enum": ["cat", "dog", "panda"]}},
                    "required": ["name"],
                },
                "strict": True,
            },
        },
    },
    "tools": {
        "messages": [{"role": "user", "content": "What does a panda eat?"}],
        "tools": [
            {
                "type": "function",
                "function": {
                    "name": "favourite_food",
                    "description": "Says what an animal likes to eat.",
                    "parameters": {
                        "type": "object",
                        "properties": {"animal": {"enum": ["cat", "dog", "panda"]}},
                        "required": ["animal"],
                    },
                    "strict": True,
                },
            }
        ],
        "tool_choice": "required",
        "parallel_tool_calls": False,
        "stream": True,
    },
}


SECTIONS: dict[type[BaseModel], Section] = {
    ChatCompletionRequest: TOP_LEVEL,
    Message: MESSAGE,
    ContentPart: PART,
    ImageURL: IMAGE_URL,
    StreamOptions: STREAM_OPTIONS,
    ResponseFormat: RESPONSE_FORMAT,
    JSONSchemaFormat: JSON_SCHEMA,
    StructuredOutputs: STRUCTURED_OUTPUTS,
    ToolDefinition: TOOL,
    FunctionDefinition: FUNCTION,
    ChosenTools: TOOL_CHOICE,
}


@dataclass(frozen=True)
class ChatCall:
    """A request for a chat completion."""

    request: ChatCompletionRequest

    @property
    def generations(self) -> Sequence[GenerationRequest]:
        request = self.request
        return [
            GenerationRequest(
                model=request.model,
                fields=CHAT.values(request),
                name_field=partial(CHAT.param_of, request),
                images=[ImageReference(at.source, at.param_of) for at in request.images()],
                choice_count=request.choice_count,
            )
        ]

    @property
    def stream(self) -> bool:
        return bool(self.request.stream)

    @property
    def ignored_fields(self) -> str | None:
        return self.request.ignored_fields

    def whole(self, head: AnswerHead) -> WholeAnswer:
        return WholeAnswer(head, self.request.choice_count, self._calls)

    def streamed(self, head: AnswerHead) -> StreamedAnswer:
        return StreamedAnswer(
            head,
            self.request.choice_count,
            include_usage=self.request.include_usage,
            continuous_usage=self.request.continuous_usage,
            calls=self._calls,
        )

    @property
    def _calls(self) -> CallForm:
        return OlderCall() if self.request.functions else ToolCalls()


def parse(body: bytes, strict_fields: bool) -> ChatCall:
    """Returns the request that a body holds; raises as `parse_chat_request`."""
    return ChatCall(parse_chat_request(body, strict_fields))


CHAT_COMPLETIONS = Dialect(
    "/v1/chat/completions",
    parse,
    openai_error,
    Operation(
        "Answer a conversation with pictures, as OpenAI's chat",
        ChatCompletion,
        request=ChatCompletionRequest,
        event=ChatCompletionChunk,
        last_word="[DONE]",
        examples=EXAMPLES,
        errors=OF_BODIES,
        sections=SECTIONS,
    ),
    answer_id_prefix="chatcmpl-",
    image_places=IMAGE_PLACES,
)
