"""The Hermes format of tools, as Qwen2.5 has learned it.

Qwen/Qwen2.5-7B-Instruct, tokenizer_config.json, chat_template: the definitions stand in the
system's turn, a call in the assistant's after its text, and what consecutive tools returned is one
turn of the user's.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

from llm_service.pieces import ControlToken, Piece, Turn, lines
from llm_service.tokenizer import Tokenizer
from llm_service.tools.base import Envelope, ToolCall, ToolDefinition

CALL_START = "<tool_call>"
CALL_END = "</tool_call>"
BEFORE_DEFINITIONS = (
    "\n\n# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>\n"
)
AFTER_DEFINITIONS = (
    "\n</tools>\n\nFor each function call, return a json object with function name and arguments"
    " within <tool_call></tool_call> XML tags:\n<tool_call>\n"
    '{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>'
)


class HermesFormat:
    """A call's marks are tokens where the tokenizer has them, as Qwen2.5's, and else text."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        start, end = (
            ControlToken(mark) if tokenizer.has_token(mark) else mark
            for mark in (CALL_START, CALL_END)
        )
        self.envelope = Envelope(
            mark=start,
            opening=('\n{"name": ',),
            middle=', "arguments": ',
            closing=("}\n", end),
            separator="\n",
        )

    def system_turns(self, system_text: str, tools: Sequence[ToolDefinition]) -> list[Turn]:
        documents = ({"type": "function", "function": tool.document()} for tool in tools)
        definitions = "\n".join(json.dumps(each, ensure_ascii=False) for each in documents)
        text = f"{system_text}{BEFORE_DEFINITIONS}{definitions}{AFTER_DEFINITIONS}"
        return [Turn(("system\n",), (text,))]

    def answer_pieces(self, text: str, calls: Sequence[ToolCall]) -> Iterator[Piece]:
        texts = [(text,)] if text else []  # no line is left empty
        return lines([*texts, *map(self.envelope.pieces, calls)])

    def response_turns(self, texts: Sequence[str]) -> list[Turn]:
        responses = [(f"<tool_response>\n{text}\n</tool_response>",) for text in texts]
        return [Turn(("user\n",), tuple(lines(responses)))]
