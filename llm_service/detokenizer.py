"""Token ids to text deltas: whole characters only, and nothing of a stop string."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType

from llm_service.tokenizer import Tokenizer


class Detokenizer:
    """Turns a growing sequence of ids into text, holding back bytes of unfinished characters."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        skip_special_tokens: bool = True,
        keep_first_space: bool = False,
        symbols: Mapping[int, str] = MappingProxyType({}),
    ) -> None:
        """Begins a text.

        Args:
            tokenizer: what the ids are of.
            skip_special_tokens: whether special tokens are left out.
            keep_first_space: whether a first space stays that SentencePiece would drop: a guided
                text is exactly its tokens' bytes, and one that goes on with another is no first
                word.
            symbols: what stands for some ids, whether they are skipped or not.
        """
        self._tokenizer = tokenizer
        self._skip_special_tokens = skip_special_tokens
        self._symbols = symbols
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._drop_space = tokenizer.drops_first_space and not keep_first_space

    def push(self, token_ids: Iterable[int]) -> str:
        """Returns the text that these ids complete; invalid bytes become U+FFFD."""
        return self._first_space_dropped("".join(map(self._text, token_ids)))

    def finish(self) -> str:
        """Returns what was held back: U+FFFD for a character that never ended."""
        return self._utf8.decode(b"", final=True)

    def _text(self, token_id: int) -> str:
        if symbol := self._symbols.get(token_id):
            return self.finish() + symbol
        return self._utf8.decode(self._bytes(token_id))

    def _bytes(self, token_id: int) -> bytes:
        if self._skip_special_tokens and self._tokenizer.is_special(token_id):
            return b""
        return self._tokenizer.token_bytes(token_id)

    def _first_space_dropped(self, text: str) -> str:
        if not self._drop_space or not text:
            return text
        self._drop_space = False
        return text.removeprefix(" ")


class StopStrings:
    """Cuts a text stream at the first of several strings, wherever the deltas' borders lie."""

    def __init__(self, strings: Sequence[str]) -> None:
        self._strings = strings
        self._held = ""

    @property
    def is_empty(self) -> bool:
        return not self._strings

    def push(self, text: str) -> tuple[str, str | None]:
        """Returns the text that is certain, and the stop string if one was met.

        A tail that may be the beginning of a stop string is held until more text decides.
        """
        text = self._held + text
        found = [(text.index(string), string) for string in self._strings if string in text]
        if found:
            position, string = min(found)
            self._held = ""
            return text[:position], string
        keep = undecided(text, self._strings)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep], None

    def finish(self) -> str:
        """Returns the held tail: the text ended before a stop string did."""
        held, self._held = self._held, ""
        return held


def undecided(text: str, strings: Sequence[str]) -> int:
    """Returns the length of the longest tail of a text that some string begins with."""
    longest = max((len(string) - 1 for string in strings), default=0)
    for size in range(min(longest, len(text)), 0, -1):
        if any(string.startswith(text[-size:]) for string in strings):
            return size
    return 0
