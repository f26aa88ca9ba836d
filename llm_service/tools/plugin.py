"""The format of tools that InternLM2 has learned, whose marks are tokens.

InternLM/InternLM, chat/chat_format.md: the definitions are a turn of the system's after its text,
a call stands in the assistant's turn, and what a tool returned is a turn of the environment's.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from llm_service.pieces import ControlToken, Piece, Turn
from llm_service.tools.base import Envelope, ToolCall, ToolDefinition

PLUGIN = ControlToken("<|plugin|>")
CALL_START = ControlToken("<|action_start|>")
CALL_END = ControlToken("<|action_end|>")


class PluginFormat:
    """Calls follow the text, and each other, with nothing between."""

    envelope = Envelope(
        mark=CALL_START,
        opening=(PLUGIN, '\n{"name": '),
        middle=', "parameters": ',
        closing=("}", CALL_END),
        separator="",
    )

    def system_turns(self, system_text: str, tools: Sequence[ToolDefinition]) -> list[Turn]:
        definitions = json.dumps([tool.document() for tool in tools], ensure_ascii=False)
        return [
            Turn(("system\n",), (system_text,), always_ends=True),
            Turn(("system name=", PLUGIN, "\n"), (definitions,)),
        ]

    def answer_pieces(self, text: str, calls: Sequence[ToolCall]) -> list[Piece]:
        return [text, *(piece for call in calls for piece in self.envelope.pieces(call))]

    def response_turns(self, texts: Sequence[str]) -> list[Turn]:
        heading = ("environment name=", PLUGIN, "\n")
        return [Turn(heading, (text,), always_ends=True) for text in texts]
