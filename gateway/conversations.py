"""Which conversation a request belongs to: what stays the same from turn to turn."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

from gateway.openai.requests import ChatCompletionRequest, Message

# Of each text: enough to tell conversations apart, and little to hash while others wait.
OPENING_LENGTH = 4096


def conversation_key(request: ChatCompletionRequest, contents: Mapping[str, bytes]) -> str:
    """Returns the key of a request's conversation, 64 hexadecimal digits.

    The first user turn decides: its first image if it has one, else its text and the system's. What
    later turns add changes nothing.

    Args:
        request: with all turns so far.
        contents: the SHA-256 of each image's file, by the image's JSON path.
    """
    salt = request.cache_salt or ""
    turns = [turn for turn in request.messages if turn.role == "user"]
    first = f"messages[{request.messages.index(turns[0])}]." if turns else "none"
    for param, content in contents.items():
        if param.startswith(first):
            return _digest(salt, content.hex())
    system = [turn for turn in request.messages if turn.role in ("system", "developer")]
    return _digest(salt, *map(_opening, (*system[:1], *turns[:1])))


def _opening(turn: Message) -> str:
    return "\n".join(part.text or "" for part in turn.content)[:OPENING_LENGTH]


def _digest(*words: str) -> str:
    return hashlib.sha256(json.dumps(words).encode()).hexdigest()
