"""Where in a JSON text a reader is that reads it while it arrives."""

from __future__ import annotations

import re

from protos.errors import InvalidArgumentError

# From the outside to a value: names in objects, and None for each list.
JSONPath = tuple[bytes | None, ...]

TOKEN = re.compile(
    rb"(?P<open>[{\[])|(?P<close>[}\]])"
    rb'|"(?P<string>[^"]*)"?(?P<colon>[ \t\r\n]*:)?',
)
# Within strings; what they become is as long, and many times faster to read past.
ESCAPES = (rb"\\", rb"\"")
# Brackets and strings; a request that is read has far fewer, and a body full of them would hold up
# everybody else.
MAX_TOKEN_COUNT = 131_072


class PathReader:
    """Follows a text's brackets and names; of what is no JSON it makes a path, too."""

    def __init__(self) -> None:
        self._path: list[bytes | None] = []
        self._end = 0
        self._token_count = 0

    def path_at(self, text: bytearray, end: int) -> JSONPath:
        """Returns the path of the value that begins at an index, which may only grow.

        Raises:
            InvalidArgumentError: there are too many values before it.
        """
        piece = bytes(text[self._end : end])
        for escape in ESCAPES:
            piece = piece.replace(escape, b"  ")
        for token in TOKEN.finditer(piece):
            self._take(token)
        self._end = end
        return tuple(self._path)

    def _take(self, token: re.Match[bytes]) -> None:
        self._token_count += 1
        if self._token_count > MAX_TOKEN_COUNT:
            raise InvalidArgumentError(
                f"the body has more than {MAX_TOKEN_COUNT} strings, lists and objects"
            )
        if token.lastgroup == "open":
            self._path.append(b"" if token[0] == b"{" else None)
        elif token.lastgroup == "close":
            del self._path[-1:]
        elif token.lastgroup == "colon":
            self._path[-1:] = [token["string"]]
