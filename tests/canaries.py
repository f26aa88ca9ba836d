"""Words that stand for what must never be told, and the search for them."""

from __future__ import annotations

import base64
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field


@dataclass
class Canaries:
    """Words that occur nowhere else, each by the name of what it stands for."""

    words: dict[str, str] = field(default_factory=dict)

    def __getitem__(self, name: str) -> str:
        """Returns the word of a name, which is made when it is first asked for."""
        return self.words.setdefault(name, f"zq{name}{secrets.token_hex(6)}")

    def found_in(self, data: bytes) -> set[str]:
        """Returns the names of those that are in some bytes, also in base64 or as hexadecimal."""
        return {
            name
            for name, word in self.words.items()
            if any(form in data for form in _forms(word.encode()))
        }

    def leaks(self, sinks: Mapping[str, bytes]) -> dict[str, set[str]]:
        """Returns what is found where; nothing where nothing is found."""
        found = {name: self.found_in(data) for name, data in sinks.items()}
        return {name: names for name, names in found.items() if names}


def _forms(word: bytes) -> Iterable[bytes]:
    yield word
    yield word.hex().encode()
    for shift in range(3):
        # What stands before and after shares the characters at the edges.
        encoded = base64.b64encode(b"\0" * shift + word).rstrip(b"=")
        yield encoded[4 if shift else 0 : -2]
