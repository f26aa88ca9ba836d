"""Calls of tools, and what they returned, in the Hermes format that Qwen2.5 has learned.

Qwen/Qwen2.5-7B-Instruct, tokenizer_config.json, chat_template: a call stands in the assistant's
turn after its text, and what consecutive tools returned is one turn of the user's.
"""

from __future__ import annotations

import json
from dataclasses import dataclass


@dataclass(frozen=True)
class ToolCall:
    """A call of a tool, as the assistant made it.

    Attributes:
        name: of the tool.
        arguments: the text of a JSON object, as it was written; empty where there are none.
    """

    name: str
    arguments: str


def call_text(call: ToolCall) -> str:
    """Returns a call, which begins a line of its own."""
    name = json.dumps(call.name, ensure_ascii=False)
    arguments = call.arguments or "{}"
    return f'<tool_call>\n{{"name": {name}, "arguments": {arguments}}}\n</tool_call>'


def response_text(text: str) -> str:
    """Returns what a tool returned, which begins a line of its own."""
    return f"<tool_response>\n{text}\n</tool_response>"
