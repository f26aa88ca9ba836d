"""Calls of tools in OpenAI's chat answers: as `tool_calls`, or in the older form."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from gateway.events import FinishReason, ToolCallDelta
from gateway.tools import CallIds


@dataclass
class MadeCall:
    """What has come of one call."""

    name: str = ""
    pieces: list[str] = field(default_factory=list)

    def add(self, piece: ToolCallDelta) -> None:
        self.name += piece.name
        self.pieces.append(piece.arguments)

    def json(self) -> dict[str, Any]:
        """Returns the call's function."""
        return {"name": self.name, "arguments": "".join(self.pieces)}


class CallForm(Protocol):
    """How calls are written into a message, or the delta of one."""

    finish_reason: str

    def message(self, choice_index: int, calls: Mapping[int, MadeCall]) -> dict[str, Any]:
        """Returns the members of a message that makes calls."""

    def delta(self, choice_index: int, pieces: Iterable[ToolCallDelta]) -> dict[str, Any]:
        """Returns the members of a delta that has new pieces of calls."""


class ToolCalls:
    """A list of calls, each with its id."""

    finish_reason = "tool_calls"

    def __init__(self) -> None:
        self._ids = CallIds()

    def message(self, choice_index: int, calls: Mapping[int, MadeCall]) -> dict[str, Any]:
        return {
            "tool_calls": [
                {**self._head(choice_index, index), "function": calls[index].json()}
                for index in sorted(calls)
            ]
        }

    def delta(self, choice_index: int, pieces: Iterable[ToolCallDelta]) -> dict[str, Any]:
        return {"tool_calls": [self._piece(choice_index, piece) for piece in pieces]}

    def _piece(self, choice_index: int, piece: ToolCallDelta) -> dict[str, Any]:
        index = {"index": piece.call_index}
        if not piece.name:
            return index | {"function": {"arguments": piece.arguments}}
        function = {"name": piece.name, "arguments": piece.arguments}
        return index | self._head(choice_index, piece.call_index) | {"function": function}

    def _head(self, choice_index: int, call_index: int) -> dict[str, Any]:
        return {"id": self._ids.of(choice_index, call_index), "type": "function"}


class OlderCall:
    """The one call of a function; the form has no place for more."""

    finish_reason = "function_call"

    def message(self, choice_index: int, calls: Mapping[int, MadeCall]) -> dict[str, Any]:
        return {"function_call": calls[min(calls)].json()}

    def delta(self, choice_index: int, pieces: Iterable[ToolCallDelta]) -> dict[str, Any]:
        call = MadeCall()
        for piece in pieces:
            call.add(piece)
        function = call.json()
        return {"function_call": function if call.name else {"arguments": function["arguments"]}}


def finish_reason(reason: FinishReason, form: CallForm, *, has_called: bool) -> str:
    """Returns why a choice ended, as OpenAI says it: for a call, if it was not cut."""
    return form.finish_reason if has_called and reason == "stop" else reason
