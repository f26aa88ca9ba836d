"""POST /v1/responses: OpenAI's Responses, without any memory of earlier ones."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property, partial
from typing import Any

from pydantic import BaseModel

from gateway.dialects.base import Dialect, openai_error
from gateway.dialects.chat import PICTURE
from gateway.fields import (
    SAMPLING,
    Option,
    Options,
    limit,
    nowhere,
)
from gateway.generation import GenerationRequest, ImageReference
from gateway.openai.answers import AnswerHead
from gateway.openai.known_fields import Section
from gateway.openai.responses import (
    BareMessage,
    BareText,
    CallOutput,
    FunctionTool,
    InputCall,
    InputMessage,
    InputPart,
    ResponsesRequest,
    TextFormat,
    TextOptions,
    parse_responses_request,
)
from gateway.openai.responses_answers import StreamedResponse, WholeResponse
from gateway.openai.responses_fields import FORMAT, ITEM, PART, TEXT, TOOL
from gateway.openai.responses_fields import RESPONSES as REQUEST
from gateway.openai.responses_types import Response, StreamEvent
from gateway.openapi.operation import OF_BODIES, Operation
from gateway.tools import ToolChoice

LocatedPart = tuple[str, InputPart]  # with its JSON path
ROLES = {
    "system": "ROLE_SYSTEM",
    "developer": "ROLE_SYSTEM",
    "user": "ROLE_USER",
    "assistant": "ROLE_ASSISTANT",
}
# Where an image may be: in a message, and in a tool's output.
IMAGE_PLACES = frozenset(
    (b"input", None, field, None, b"image_url") for field in (b"content", b"output")
)
EXAMPLES: dict[str, dict[str, Any]] = {
    "text": {"instructions": "Be brief.", "input": "What is a panda?", "max_output_tokens": 32},
    "picture": {
        "input": [
            {
                "role": "user",
                "content": [
                    {"type": "input_text", "text": "What do you see?"},
                    {"type": "input_image", "image_url": PICTURE, "detail": "low"},
                ],
            }
        ],
        "max_output_tokens": 32,
    },
    "stream": {
        "input": "What is a panda?",
        "stream": True,
        "include": ["message.output_text.logprobs"],
    },
    "json": {
        "input": "Name an animal, as JSON.",
        "text": {
            "format": {
                "type": "json_schema",
                "name": "animal",
                "schema": {
                    "type": "object",
                    "properties": {"name": {"enum": ["cat", "dog", "panda"]}},
                    "required": ["name"],
                },
                "strict": True,
            }
        },
    },
    "tools": {
        "input": [
            {"role": "user", "content": "How is the weather in Oslo?"},
            {
                "type": "function_call",
                "call_id": "call_1",
                "name": "weather",
                "arguments": '{"city": "Oslo"}',
            },
            {"type": "function_call_output", "call_id": "call_1", "output": "It is sunny."},
        ],
        "tools": [
            {
                "type": "function",
                "name": "weather",
                "description": "Tells the weather.",
                "parameters": {
                    "type": "object",
                    "properties": {"city": {"type": "string"}},
                    "required": ["city"],
                },
            }
        ],
        "stream": True,
    },
}
SECTIONS: dict[type[BaseModel], Section] = {
    ResponsesRequest: REQUEST,
    InputMessage: ITEM,
    InputCall: ITEM,
    CallOutput: ITEM,
    InputPart: PART,
    FunctionTool: TOOL,
    TextOptions: TEXT,
    TextFormat: FORMAT,
}
# A place in the messages of the contract.
PLACE = re.compile(r"\[(\d+)\](?:\.(parts|tool_calls)\[(\d+)\])?(.*)")
IMAGE = re.compile(r"images(?:\[(\d+)\])?")


def _definitions(tools: Sequence[FunctionTool]) -> list[dict[str, Any]] | None:
    return [asdict(tool.tool) for tool in tools] or None


# GenerateStart, of a ResponsesRequest, but for its turns and images.
RESPONSES_OPTIONS = Options(
    Option("chat.tools", "tools", _definitions),
    Option("guided.tool_calls", "tool_choice", ToolChoice.guide, nowhere, "choice_of_tools"),
    Option("guided.json_object", "text.format.type", {"json_object": {}}.get),
    Option("guided.json_schema", "text.format.schema"),
    Option("stop.max_token_count", "max_output_tokens", limit),
    Option("logprobs.top_count", "top_logprobs", source="alternative_count"),
    *SAMPLING,
)


@dataclass(frozen=True)
class Turn:
    """A turn of the conversation, and where the client has written it.

    Attributes:
        role: as in the contract.
        path: JSON path of the item that it begins with.
        parts: its texts and images, with their paths.
        calls: of tools, with their paths; an item each for the client.
    """

    role: str
    path: str
    parts: list[LocatedPart] = field(default_factory=list)
    calls: list[tuple[str, InputCall]] = field(default_factory=list)

    def message(self) -> dict[str, Any]:
        """Returns the fields of a ChatMessage."""
        return {
            "role": self.role,
            "parts": [
                {"image": {}} if part.image else {"text": part.words} for _, part in self.parts
            ],
            "tool_calls": [
                {"name": call.name, "arguments": call.arguments} for _, call in self.calls
            ],
        }


def turns_of(request: ResponsesRequest) -> list[Turn]:
    """Returns the conversation of a request.

    Calls belong to the assistant's turn before them. The images of tools' outputs are shown in a
    turn of the user's behind these, as no other may have any.
    """
    turns, shown = [], []
    if request.instructions:
        text = BareText(type="input_text", text=request.instructions)
        turns.append(Turn("ROLE_SYSTEM", "instructions", [("instructions", text)]))
    for path, item in request.items():
        if isinstance(item, CallOutput):
            parts = _located(item.output, f"{path}.output")
            turns.append(Turn("ROLE_TOOL", path, [part for part in parts if not part[1].image]))
            shown += [part for part in parts if part[1].image]
            continue
        turns += _showing(shown)
        shown = []
        if isinstance(item, InputMessage):
            content_path = path if isinstance(item, BareMessage) else f"{path}.content"
            turns.append(Turn(ROLES[item.role], path, _located(item.content, content_path)))
        elif isinstance(item, InputCall):
            if not turns or turns[-1].role != "ROLE_ASSISTANT":
                turns.append(Turn("ROLE_ASSISTANT", path))
            turns[-1].calls.append((path, item))
    return [*turns, *_showing(shown)]


def _showing(images: list[LocatedPart]) -> list[Turn]:
    """Returns the turn of the user that shows images, if there are any."""
    return [Turn("ROLE_USER", images[0][0], images)] if images else []


def _located(parts: Sequence[InputPart], path: str) -> list[LocatedPart]:
    """Returns parts with the paths of what they have; a text without a list stands for itself."""
    return [
        (path if isinstance(part, BareText) else f"{path}[{index}].{part.field}", part)
        for index, part in enumerate(parts)
    ]


def place_in(turns: Sequence[Turn], rest: str) -> str:
    """Returns the JSON path of what is at a place in the messages, e.g. "[1].parts[0].text"."""
    found = PLACE.match(rest)
    if found is None or int(found[1]) >= len(turns):
        return "input"
    turn, index = turns[int(found[1])], int(found[3] or 0)
    if found[2] == "parts" and index < len(turn.parts):
        return turn.parts[index][0]
    if found[2] == "tool_calls" and index < len(turn.calls):
        return turn.calls[index][0] + found[4]
    return turn.path


def _images_of(turns: Sequence[Turn]) -> list[ImageReference]:
    return [
        ImageReference(part.image, partial(_name_of_image, path))
        for turn in turns
        for path, part in turn.parts
        if part.image
    ]


def _name_of_image(path: str, name: str) -> str:
    return path if name == "url" else path.removesuffix("image_url") + name


@dataclass(frozen=True)
class ResponsesCall:
    """A request for a response.

    Attributes:
        echo: the members of the answer that come from the request, as a JSON object.
    """

    request: ResponsesRequest
    echo: str

    @cached_property
    def generations(self) -> Sequence[GenerationRequest]:
        turns = turns_of(self.request)
        images = _images_of(turns)

        def name_field(field: str) -> str:
            if field.startswith("chat.messages"):
                return place_in(turns, field.removeprefix("chat.messages"))
            if image := IMAGE.match(field):
                index = int(image[1] or len(images))
                return images[index].name_field("url") if index < len(images) else "input"
            return RESPONSES_OPTIONS.param_of(self.request, field)

        fields = {
            "chat.messages": [turn.message() for turn in turns],
            "chat.ending": "CHAT_ENDING_NEW_TURN",  # as OpenAI's: what was said does not go on
            **RESPONSES_OPTIONS.values(self.request),
        }
        return [GenerationRequest(self.request.model, fields, name_field, images, "input")]

    @property
    def stream(self) -> bool:
        return bool(self.request.stream)

    @property
    def ignored_fields(self) -> str | None:
        return self.request.ignored_fields

    def whole(self, head: AnswerHead) -> WholeResponse:
        return WholeResponse(head, self.echo)

    def streamed(self, head: AnswerHead) -> StreamedResponse:
        return StreamedResponse(head, self.echo)


def parse(body: bytes, strict_fields: bool) -> ResponsesCall:
    """Returns the request that a body holds; raises as `parse_responses_request`."""
    return ResponsesCall(*parse_responses_request(body, strict_fields))


RESPONSES = Dialect(
    "/v1/responses",
    parse,
    openai_error,
    Operation(
        "Answers a conversation with pictures, as OpenAI's Responses",
        Response,
        request=ResponsesRequest,
        event=StreamEvent,
        names_events=True,
        examples=EXAMPLES,
        errors=OF_BODIES,
        sections=SECTIONS,
        description="Nothing is stored: each request brings its whole conversation.",
    ),
    answer_id_prefix="resp_",
    image_places=IMAGE_PLACES,
)
