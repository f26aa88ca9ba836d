"""POST /v1/messages and /v1/messages/count_tokens: Anthropic's Messages."""

from __future__ import annotations

import operator
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, TypeVar

from gateway.anthropic.answers import StreamedMessage, WholeMessage
from gateway.anthropic.errors import error_body
from gateway.anthropic.requests import (
    Block,
    Message,
    MessagesRequest,
    Piece,
    PromptRequest,
    TextBlock,
    parse_request,
)
from gateway.dialects.base import Dialect
from gateway.fields import Option, Options, limit, none_if_all, signed
from gateway.generation import GenerationRequest, ImageReference
from gateway.openai.answers import AnswerHead
from gateway.tools import Tool, ToolChoice

Located = TypeVar("Located", bound=Piece | TextBlock)

ROLES = {"user": "ROLE_USER", "assistant": "ROLE_ASSISTANT", "system": "ROLE_SYSTEM"}
# Where a base64 image may be: in a message, and in a tool's result.
CONTENT = (b"messages", None, b"content", None)
IMAGE_PLACES = frozenset(
    (*above, b"source", name)
    for above in (CONTENT, (*CONTENT, b"content", None))
    for name in (b"data", b"url")
)
# Of a contract's path: a turn, or an entry of its parts or calls, and what is within it.
IMAGE = re.compile(r"images\[(\d+)\]")
PLACE = re.compile(r"(chat\.messages\[\d+\](?:\.\w+\[\d+\])?)(.*)")
# What a call's fields are called by Anthropic; all else in a turn has no name of its own.
NAMES_IN_CALLS = {".name": ".name", ".arguments": ".input"}
ERROR = {"text": "Error:"}  # what a failed call's result begins with


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


class Conversation:
    """The turns of a request, as they are laid out.

    Neighbouring messages of one role are one turn. A tool's result is a turn; its images are shown
    in the user's turn that follows, as no other may have any.

    Attributes:
        turns: fields of ChatMessages.
        images: those of the turns in order, each with its JSON path.
    """

    def __init__(self, request: PromptRequest) -> None:
        self.turns: list[dict[str, Any]] = []
        self.images: list[tuple[str, Piece]] = []
        self._places: dict[str, str] = {}  # JSON paths of turns, parts and calls, by their own
        self._shown: list[tuple[str, Piece]] = []  # of results, and not in a turn yet
        self._message = "system"  # JSON path of what is being laid out
        for path, block in _located(request.system, "system"):
            self._add_part("ROLE_SYSTEM", path, {"text": block.text})
        for index, message in enumerate(request.messages):
            self._add(message, f"messages[{index}]")

    def place_of(self, field: str) -> str:
        """Returns the JSON path of what a field of GenerateStart was made from; or nothing."""
        if image := IMAGE.match(field):
            return self.images[int(image[1])][0]
        if place := PLACE.match(field):
            return self._places.get(place[1], "messages") + NAMES_IN_CALLS.get(place[2], "")
        if field == "chat.ending":
            return self._places[f"chat.messages[{len(self.turns) - 1}]"]
        return "messages" if field in ("chat", "chat.messages", "images") else ""

    def _add(self, message: Message, path: str) -> None:
        role, self._message = ROLES[message.role], path
        if all(block.is_passed_over for block in message.content):
            self._turn(role)
        for place, block in _located(message.content, f"{path}.content"):
            if block.type == "tool_use":
                self._add_call(block, place)
            elif block.type == "tool_result":
                self._add_result(block, place)
            elif not block.is_passed_over:
                self._show()
                self._add_piece(role, place, block)
        self._show()

    def _add_call(self, block: Block, path: str) -> None:
        calls = self._turn("ROLE_ASSISTANT").setdefault("tool_calls", [])
        calls.append({"name": block.name, "arguments": block.input})
        self._note(f".tool_calls[{len(calls) - 1}]", path)

    def _add_result(self, block: Block, path: str) -> None:
        self.turns.append({"role": "ROLE_TOOL", "parts": [ERROR] if block.is_error else []})
        self._note("", path)
        for place, piece in _located(block.content, f"{path}.content"):
            if piece.image:
                self._shown.append((place, piece))
            else:
                self._add_piece("ROLE_TOOL", place, piece)

    def _show(self) -> None:
        for path, piece in self._shown:
            self._add_piece("ROLE_USER", path, piece)
        self._shown.clear()

    def _add_piece(self, role: str, path: str, piece: Piece) -> None:
        if piece.image:
            self.images.append((path, piece))
        self._add_part(role, path, {"image": {}} if piece.image else {"text": piece.text})

    def _add_part(self, role: str, path: str, part: dict[str, Any]) -> None:
        parts = self._turn(role)["parts"]
        parts.append(part)
        self._note(f".parts[{len(parts) - 1}]", path)

    def _turn(self, role: str) -> dict[str, Any]:
        """Returns the last turn if it is of a role, else a new one."""
        if not self.turns or self.turns[-1]["role"] != role:
            self.turns.append({"role": role, "parts": []})
            self._note("", self._message)
        return self.turns[-1]

    def _note(self, rest: str, path: str) -> None:
        self._places[f"chat.messages[{len(self.turns) - 1}]{rest}"] = path


def _located(blocks: Sequence[Located], path: str) -> Iterator[tuple[str, Located]]:
    """Yields blocks with their JSON paths; a lone text may be a string in the list's place."""
    for index, block in enumerate(blocks):
        text = ".text" if block.type == "text" else ""
        yield path if text and len(blocks) == 1 else f"{path}[{index}]{text}", block


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


def _dialect(path: str, model: type[PromptRequest]) -> Dialect:
    return Dialect(
        path,
        partial(_parse, model),
        error_body,
        request_id_key="request-id",
        image_places=IMAGE_PLACES,
    )


MESSAGES = _dialect("/v1/messages", MessagesRequest)
# Not a generation: its answer is a count.
MESSAGES_COUNT = _dialect("/v1/messages/count_tokens", PromptRequest)
