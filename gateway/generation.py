"""What the services are asked for, in whichever dialect a client has asked."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gateway.openai.requests import ImageURL

# Of each text: enough to tell conversations apart, and little to hash while others wait.
OPENING_LENGTH = 4096


@dataclass(frozen=True)
class ImageReference:
    """An image of a request.

    Attributes:
        source: where it is, and how finely it is looked at.
        name_field: returns the JSON path of what the client wrote for a field of `source`.
    """

    source: ImageURL
    name_field: Callable[[str], str]


@dataclass(frozen=True)
class GenerationRequest:
    """One generation that a request asks for: what all dialects are translated into.

    Attributes:
        model: a name of the model; empty for the one that is served.
        fields: values of GenerateStart's fields by their paths, e.g. 0.5 at "sampling.top_p"; not
            the images, nor what the gateway itself adds.
        images: those of the prompt, in order.
        images_field: JSON path of what holds them.
        name_field: returns the JSON path of what a field of GenerateStart was made from; nothing
            where the client has no part in it.
        choice_count: how many answers it asks for.
    """

    model: str
    fields: Mapping[str, Any]
    name_field: Callable[[str], str]
    images: Sequence[ImageReference] = ()
    images_field: str = "messages"
    choice_count: int = 1

    @property
    def guide_key(self) -> str:
        """The key of what the output is held to, which a replica keeps; empty where it is free."""
        guided = [value for field, value in self.fields.items() if field.startswith("guided.")]
        schemas = [tool["parameters"] for tool in self.fields.get("chat.tools", ())]
        words = [str(value)[:OPENING_LENGTH] for value in (*guided, *schemas)]
        return _digest(*words) if guided else ""

    def conversation_key(self, image_digests: Sequence[bytes]) -> str:
        """Returns the key of the conversation that it belongs to, 64 hexadecimal digits.

        The first user turn decides: its first image if it has one, else its text and the system's.
        What later turns add changes nothing. A prompt that is no conversation stands for itself.

        Args:
            image_digests: the SHA-256 of each image's file, in order.
        """
        salt: str = self.fields.get("cache_salt", "")
        turns: Sequence[Mapping[str, Any]] | None = self.fields.get("chat.messages")
        if turns is None:
            ids = self.fields.get("token_ids.ids", ())[:OPENING_LENGTH]
            return _digest(salt, self.fields.get("text", "")[:OPENING_LENGTH], *map(str, ids))
        first = [turn for turn in turns if turn["role"] == "ROLE_USER"][:1]
        if any("image" in part for turn in first for part in turn["parts"]):
            return _digest(salt, image_digests[0].hex())  # others' turns have none
        system = [turn for turn in turns if turn["role"] == "ROLE_SYSTEM"][:1]
        return _digest(salt, *map(_opening, (*system, *first)))


def _opening(turn: Mapping[str, Any]) -> str:
    return "\n".join(part.get("text", "") for part in turn["parts"])[:OPENING_LENGTH]


def _digest(*words: str) -> str:
    return hashlib.sha256(json.dumps(words).encode()).hexdigest()
