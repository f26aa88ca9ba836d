"""POST /v1/messages and /v1/messages/count_tokens: Anthropic's Messages."""

from __future__ import annotations

import operator
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from gateway.anthropic.answers import StreamedMessage, WholeMessage
from gateway.anthropic.errors import error_body
from gateway.anthropic.requests import (
    Block,
    Message,
    MessagesRequest,
    Piece,
    PromptRequest,
    parse_request,
)
from gateway.dialects.base import Dialect
from gateway.fields import Option, Options, limit, none_if_all, signed
from gateway.generation import GenerationRequest, ImageReference
from gateway.openai.answers import AnswerHead
from gateway.tools import Tool, ToolChoice

ROLES = {"user": "ROLE_USER", "assistant": "ROLE_ASSISTANT", "system": "ROLE_SYSTEM"}
# Where a base64 image may be: in a message, and in a tool's result.
CONTENT = (b"messages", None, b"content", None)
IMAGE_PLACES = frozenset(
    (*above, b"source", name)
    for above in (CONTENT, (*CONTENT, b"content", None))
    for name in (b"data", b"url")
)
# Of a contract's path: a turn, or an entry of its parts or calls, and what is within it.
PLACE = re.compile(r"(chat\.messages\[\d+\](?:\.\w+\[\d+\])?)(.*)")
# What a call's fields are called by Anthropic; all else in a turn has no name of its own.
NAMES_IN_CALLS = {".name": ".name", ".arguments": ".input"}
ERROR = {"text": "Error:"}


def _definitions(tools: Sequence[Tool]) -> list[dict[str, Any]]:
    return [asdict(tool) for tool in tools]


def _place_in_tools(_: object, rest: str) -> str:
    """Turns "[1].parameters" into "[1].input_schema"."""
    return rest.replace(".parameters", ".input_schema")


def _place_in_choice(request: PromptRequest, rest: str) -> str:
    return ".name" if rest.startswith(".names") else ""


# GenerateStart, of a MessagesRequest, but for the turns.
MESSAGES = Options(
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
)
# The part of it that a prompt is made of.
PROMPT = Options(
    Option("chat.tools", "tools", _definitions, _place_in_tools, source="offered_tools"),
)


@dataclass
class Conversation:
    """The turns of a request, as they are laid out.

    Attributes:
        turns: fields of ChatMessages.
        places: JSON paths of what turns, parts and calls were made from, by their own paths.
        images: those of the turns, in order.
        shown: of tools' results, for the user's turn that follows: only a user's has images.
    """

    turns: list[dict[str, Any]] = field(default_factory=list)
    places: dict[str, str] = field(default_factory=dict)
    images: list[tuple[str, Piece]] = field(default_factory=list)
    shown: list[tuple[str, Piece]] = field(default_factory=list)

    @classmethod
    def of(cls, request: PromptRequest) -> Conversation:
        """Returns the conversation of a request."""
        conversation = cls()
        for index, block in enumerate(request.system):
            path = "system" if len(request.system) == 1 else f"system[{index}].text"
            conversation._add_part("ROLE_SYSTEM", path, {"text": block.text})
        for index, message in enumerate(request.messages):
            conversation._add(message, f"messages[{index}]")
        return conversation

    def place_of(self, path: str) -> str:
        """Returns the JSON path of what a path in the contract leads to; empty: nothing here."""
        if path == "chat.ending":
            return self.places[f"chat.messages[{len(self.turns) - 1}]"]
        if image := re.match(r"images\[(\d+)\]", path):
            return self.images[int(image[1])][0]
        if place := PLACE.match(path):
            return self.places.get(place[1], "messages") + NAMES_IN_CALLS.get(place[2], "")
        return "messages" if path in ("chat", "chat.messages", "images") else ""

    def references(self) -> list[ImageReference]:
        """Returns the images as the services are asked for them."""
        return [_reference(path, piece) for path, piece in self.images]

    def _add(self, message: Message, path: str) -> None:
        role = ROLES[message.role]
        self._turn(role, path)
        for index, block in enumerate(message.content):
            place = f"{path}.content[{index}]"
            if block.type == "text" and len(message.content) == 1:
                self._add_part(role, f"{path}.content", {"text": block.text})
            elif block.type == "tool_use":
                self._add_call(block, place)
            elif block.type == "tool_result":
                self._add_result(block, place)
            elif block.type in ("text", "image"):
                self._show()
                self._add_piece(role, place, block)
        self._show()

    def _add_call(self, block: Block, path: str) -> None:
        calls = self._turn("ROLE_ASSISTANT", path).setdefault("tool_calls", [])
        calls.append({"name": block.name, "arguments": block.input})
        self._note(f".tool_calls[{len(calls) - 1}]", path)

    def _add_result(self, block: Block, path: str) -> None:
        self.turns.append({"role": "ROLE_TOOL", "parts": [ERROR] if block.is_error else []})
        self._note("", path)
        for index, piece in enumerate(block.content):
            place = f"{path}.content[{index}]"
            if piece.image:
                self.shown.append((place, piece))
            else:
                self._add_piece("ROLE_TOOL", place, piece)

    def _show(self) -> None:
        for path, piece in self.shown:
            self._add_piece("ROLE_USER", path, piece)
        self.shown.clear()

    def _add_piece(self, role: str, path: str, piece: Piece) -> None:
        if piece.image:
            self._add_part(role, path, {"image": {}})
            self.images.append((path, piece))
        else:
            self._add_part(role, f"{path}.text", {"text": piece.text})

    def _add_part(self, role: str, path: str, part: dict[str, Any]) -> None:
        parts = self._turn(role, path)["parts"]
        parts.append(part)
        self._note(f".parts[{len(parts) - 1}]", path)

    def _turn(self, role: str, path: str) -> dict[str, Any]:
        """Returns the last turn if it is of a role, else a new one that begins at a JSON path."""
        if not self.turns or self.turns[-1]["role"] != role:
            self.turns.append({"role": role, "parts": []})
            self._note("", path)
        return self.turns[-1]

    def _note(self, rest: str, path: str) -> None:
        self.places[f"chat.messages[{len(self.turns) - 1}]{rest}"] = path


