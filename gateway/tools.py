"""Tools that an answer may call: what every dialect has of them, as the contract has it."""

from __future__ import annotations

import secrets
from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal

from pydantic_core import PydanticCustomError

CHOICES = {"auto": "TOOL_CHOICE_AUTO", "required": "TOOL_CHOICE_REQUIRED"}


@dataclass(frozen=True)
class Tool:
    """A tool that the model may call; the fields are those of a ToolDefinition.

    Attributes:
        name: its own among the tools.
        description: what it does; may be empty.
        parameters: JSON text of the JSON Schema of its arguments; empty: any object.
        strict: whether a schema that cannot be enforced whole is refused.
    """

    name: str
    description: str = ""
    parameters: str = ""
    strict: bool = False


@dataclass(frozen=True)
class ToolChoice:
    """Which of the tools an answer may call, or must.

    Attributes:
        mode: where it is none, the model does not even learn of the tools.
        names: of those that may be called; empty: all.
        single: whether there is one call at most.
    """

    mode: Literal["none", "auto", "required"] = "auto"
    names: tuple[str, ...] = ()
    single: bool = False

    @classmethod
    def of_one(cls, name: str) -> ToolChoice:
        """Returns the choice of exactly one call, of this tool."""
        return cls("required", (name,), single=True)

    def check(self, tool_names: Collection[str], field: str = "tool_choice") -> None:
        """Raises PydanticCustomError, of this field, where there is no such tool to be called."""
        context: dict[str, Any] = {"field": field}
        if self.mode == "required" and not tool_names:
            message = "a call of a tool is demanded, but no tools are given"
            raise PydanticCustomError("no_tools", message, context)
        if unknown := [name for name in self.names if name not in tool_names]:
            message = "the tool '{name}' is chosen, but it is not among the tools"
            raise PydanticCustomError("no_tool", message, context | {"name": unknown[0][:64]})

    def guide(self) -> dict[str, Any] | None:
        """Returns the fields of a ToolCallGuide; None where nothing may be called."""
        if self.mode == "none":
            return None
        return {"choice": CHOICES[self.mode], "names": self.names, "single": self.single}


class CallIds:
    """Names the calls of one answer.

    By chance, not by the request's id: a client may give that to all turns of a conversation, where
    each call needs an id of its own.
    """

    def __init__(self, prefix: str = "call_") -> None:
        self._ids: defaultdict[tuple[int, int], str] = defaultdict(
            lambda: prefix + secrets.token_hex(12)
        )

    def of(self, choice_index: int, call_index: int) -> str:
        """Returns the id of a choice's call: always the same."""
        return self._ids[choice_index, call_index]
