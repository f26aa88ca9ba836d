"""Anthropic's messages as the turns of the contract, and where each piece of them was written."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

from gateway.anthropic.requests import Block, MessageParam, Piece, PromptRequest, TextBlock

Located = TypeVar("Located", bound=Piece | TextBlock)

ROLES = {"user": "ROLE_USER", "assistant": "ROLE_ASSISTANT", "system": "ROLE_SYSTEM"}
# Of a contract's path: a turn, or an entry of its parts or calls, and what is within it.
IMAGE = re.compile(r"images\[(\d+)\]")
PLACE = re.compile(r"(chat\.messages\[\d+\](?:\.\w+\[\d+\])?)(.*)")
# What a call's fields are called by Anthropic; all else in a turn has no name of its own.
NAMES_IN_CALLS = {".name": ".name", ".arguments": ".input"}
ERROR = {"text": "Error:"}  # what a failed call's result begins with


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
        if (image := IMAGE.match(field)) and int(image[1]) < len(self.images):
            return self.images[int(image[1])][0]
        if place := PLACE.match(field):
            return self._places.get(place[1], "messages") + NAMES_IN_CALLS.get(place[2], "")
        if field == "chat.ending":
            return self._places.get(f"chat.messages[{len(self.turns) - 1}]", "messages")
        return "messages" if field in ("chat", "chat.messages", "images") else ""

    def _add(self, message: MessageParam, path: str) -> None:
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
