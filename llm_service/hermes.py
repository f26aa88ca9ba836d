"""Calls of tools, and what they returned, in the Hermes format that Qwen2.5 has learned.

Qwen/Qwen2.5-7B-Instruct, tokenizer_config.json, chat_template: a call stands in the assistant's
turn after its text, and what consecutive tools returned is one turn of the user's.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

from llm_service.pieces import Piece, Tag


@dataclass(frozen=True)
class ToolCall:
    """A call of a tool, as the assistant made it.

    Attributes:
        name: of the tool.
        arguments: the text of a JSON object, as it was written; empty where there are none.
    """

    name: str
    arguments: str


def call_pieces(call: ToolCall) -> Iterator[Piece]:
    """Yields a call, which begins a line of its own."""
    name = json.dumps(call.name, ensure_ascii=False)
    yield Tag("<tool_call>")
    yield f'\n{{"name": {name}, "arguments": {call.arguments or "{}"}}}\n'
    yield Tag("</tool_call>")


def response_pieces(text: str) -> Iterator[Piece]:
    """Yields what a tool returned, which begins a line of its own."""
    yield Tag("<tool_response>")
    yield f"\n{text}\n"
    yield Tag("</tool_response>")
