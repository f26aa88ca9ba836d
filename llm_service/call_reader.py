"""Reads the calls of tools out of an answer's text, as it comes.

An answer follows its guide: calls stand where they may, each as its envelope has it, and what
begins as a call is one. So all that is left is to find where names and arguments begin and end.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from llm_service.detokenizer import undecided
from llm_service.pieces import ControlToken
from llm_service.sampling import ToolCallGuide
from llm_service.tokenizer import Tokenizer
from llm_service.tools.base import ToolCallDelta

# Halves of surrogate pairs, which no UTF-8 makes, stand for tokens in the text that is read: from
# this one on for the envelope's, and the other for special tokens that the text leaves out.
FIRST_MARK, LEFT_OUT = 0xDC00, "\udfff"
STRING = r'"(?:[^"\\]|\\.)*"'


class CallReader:
    """Parts an answer into its text and its calls.

    Attributes:
        symbols: what stands for some tokens, by their ids, in the text that is to be read.
        has_begun: whether the text is over, and calls follow.
    """

    def __init__(
        self, guide: ToolCallGuide, tokenizer: Tokenizer, *, skip_special_tokens: bool
    ) -> None:
        envelope = guide.calls.envelope
        marks = {token: chr(FIRST_MARK + i) for i, token in enumerate(envelope.control_tokens)}
        left_out = tokenizer.special_ids if skip_special_tokens else ()
        self.symbols = dict.fromkeys(left_out, LEFT_OUT)
        ids = {token: tokenizer.special_id(token) for token in marks}
        self.symbols |= {ids[token]: symbol for token, symbol in marks.items()}
        self._names = {ord(symbol): token for token, symbol in marks.items()}
        self._shown = {ord(LEFT_OUT): ""} | {
            ord(symbol): "" if ids[token] in left_out else token for token, symbol in marks.items()
        }
        mark, opening = (
            "".join(marks[p.content] if isinstance(p, ControlToken) else p for p in pieces)
            for pieces in ([envelope.mark], [envelope.mark, *envelope.opening])
        )
        self._head = re.compile(f"{re.escape(opening)}({STRING}){re.escape(envelope.middle)}")
        self._mark = mark
        self._beginnings = [envelope.separator + mark, mark] if guide.allows_text else [mark]
        self._is_late = guide.allows_text
        self.has_begun = guide.is_required
        self._held = ""
        self._call_count = 0
        self._arguments: _JSONObject | None = None

    def push(self, text: str) -> tuple[str, list[ToolCallDelta]]:
        """Returns new text of the answer, and new pieces of its calls.

        A tail of the text that may begin the first call is held until more text decides.
        """
        self._held += text
        said = "" if self.has_begun else self._take_text()
        return said.translate(self._shown), list(self._take_calls()) if self.has_begun else []

    def finish(self) -> str:
        """Returns what was held of the text: the answer ended before a call began."""
        held, self._held = self._held, ""
        return "" if self.has_begun else held.translate(self._shown)

    def _take_text(self) -> str:
        held = self._held
        if not self._is_late and not (held.startswith(self._mark) or self._mark.startswith(held)):
            self._beginnings = []
        found = [held.index(beginning) for beginning in self._beginnings if beginning in held]
        self.has_begun = bool(found)
        place = min(found, default=len(held) - undecided(held, self._beginnings))
        self._held = held[place:]
        return held[:place]

    def _take_calls(self) -> Iterator[ToolCallDelta]:
        name = ""
        while self._held:
            if self._arguments is None:
                if (head := self._head.search(self._held)) is None:
                    return
                name = json.loads(head[1].translate(self._names))
                self._held = self._held[head.end() :]
                self._arguments = _JSONObject()
                self._call_count += 1
            end = self._arguments.end(self._held)
            arguments = self._held[:end].translate(self._names)
            yield ToolCallDelta(self._call_count - 1, name, arguments)
            name = ""
            self._held = "" if end is None else self._held[end:]
            if end is not None:
                self._arguments = None


class _JSONObject:
    """How far the text of a JSON object has come."""

    def __init__(self) -> None:
        self._depth = 0
        self._is_in_string = self._is_escaped = False

    def end(self, text: str) -> int | None:
        """Returns how much of the text that comes next is the object's; None: all, and more."""
        for place, character in enumerate(text):
            if self._is_escaped:
                self._is_escaped = False
            elif self._is_in_string:
                self._is_escaped = character == "\\"
                self._is_in_string = character != '"'
            elif character == '"':
                self._is_in_string = True
            else:
                self._depth += (character in "{[") - (character in "}]")
                if not self._depth:
                    return place + 1
        return None
