"""Tools, their calls, and what a format of both says."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from llm_service.pieces import ControlToken, Piece, Turn


@dataclass(frozen=True)
class ToolDefinition:
    """A tool that the assistant may call.

    Attributes:
        name: of the tool.
        description: what it does; may be empty.
        parameters: JSON text of the schema of its arguments; empty: any object.
        is_strict: whether a schema that cannot be enforced whole is refused.
    """

    name: str
    description: str = ""
    parameters: str = ""
    is_strict: bool = False

    def document(self) -> dict[str, Any]:
        """Returns the definition as JSON has it; what is not said is left out."""
        said = {"description": self.description} if self.description else {}
        schema = {"parameters": json.loads(self.parameters)} if self.parameters else {}
        return {"name": self.name, **said, **schema}


@dataclass(frozen=True)
class ToolCall:
    """A call of a tool, as the assistant made it.

    Attributes:
        name: of the tool.
        arguments: the text of a JSON object, as it was written; empty where there are none.
    """

    name: str
    arguments: str


@dataclass(frozen=True)
class ToolCallDelta:
    """A new piece of a call in an answer.

    Attributes:
        call_index: which of the answer's calls.
        name: of the tool, whole, in the call's first piece; else empty.
        arguments: new text of the arguments.
    """

    call_index: int
    name: str
    arguments: str


@dataclass(frozen=True)
class Envelope:
    """What stands around a call's name and arguments, character for character.

    Attributes:
        mark: what begins a call, and nothing else.
        opening: what follows the mark, up to the name, which is a JSON string.
        middle: what stands between the name and the arguments.
        closing: what follows the arguments.
        separator: what stands between two calls, and between a text and the call after it.
    """

    mark: str | ControlToken
    opening: tuple[str | ControlToken, ...]
    middle: str
    closing: tuple[str | ControlToken, ...]
    separator: str

    def head(self, name: str) -> tuple[str | ControlToken, ...]:
        """Returns a call up to its arguments."""
        return (self.mark, *self.opening, json.dumps(name, ensure_ascii=False), self.middle)

    def pieces(self, call: ToolCall) -> tuple[Piece, ...]:
        """Returns a call."""
        return (*self.head(call.name), call.arguments or "{}", *self.closing)

    @property
    def control_tokens(self) -> tuple[str, ...]:
        """Those of its pieces that are tokens."""
        parts = (self.mark, *self.opening, *self.closing)
        return tuple(part.content for part in parts if isinstance(part, ControlToken))


class ToolFormat(Protocol):
    """How tools, their calls and what they returned stand in a conversation."""

    @property
    def envelope(self) -> Envelope:
        """What stands around a call, in a conversation and in an answer."""
        ...

    def system_turns(self, system_text: str, tools: Sequence[ToolDefinition]) -> Iterable[Turn]:
        """Returns the turns that begin a conversation with tools."""
        ...

    def answer_pieces(self, text: str, calls: Sequence[ToolCall]) -> Iterable[Piece]:
        """Returns what the assistant says in a turn with calls; the text may be empty."""
        ...

    def response_turns(self, texts: Sequence[str]) -> Iterable[Turn]:
        """Returns the turns of what tools returned in consecutive messages."""
        ...
