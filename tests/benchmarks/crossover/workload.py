"""The requests of a load: pictures and prompts that vary, and come again for the same seed."""

from __future__ import annotations

import base64
import hashlib
import json
import random
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.benchmarks.photo import photo

PHOTO_COUNT = 12
# The edges of a photo that becomes 13 tiles: its ratio is closest to 4:3, that of 12 tiles, or to
# 3:4 when it stands upright.
LONG_EDGES, RATIOS = (900, 1400), (1.25, 1.4)
# One that is almost square becomes one tile up to 633 pixels.
SQUARE_EDGES, SQUARE_RATIOS = (300, 560), (0.9, 1.1)
TILE_COUNTS = (13, 1)
WORD_COUNTS = (10, 120)
TEXT = (
    "what is shown in this picture and where are the people who stand beside a red car near the"
    " old house with green windows before it rains how many of them look at us"
)
# A comment of 15 bytes makes each file another one: 21 bytes before the rest of the file, which
# therefore can be written as base64 once.
JPEG_START, COMMENT_SIZE = b"\xff\xd8", 15


@dataclass(frozen=True)
class Photo:
    """A JPEG without its start, also as base64."""

    rest: bytes
    rest_base64: str


@dataclass(frozen=True)
class Question:
    """One request: its body, and the digest of its first picture's file."""

    body: bytes
    first_picture: bytes


@dataclass(frozen=True)
class Workload:
    """Requests of one kind.

    Attributes:
        model: whom they ask.
        photos: what their pictures are made of.
        picture_count: pictures in each.
        token_count: tokens of each answer.
        seed: of all that varies; another one makes other files and prompts.
        word_counts: the fewest and the most words of a prompt; a word is about a token.
    """

    model: str
    photos: Sequence[Photo]
    picture_count: int
    token_count: int
    seed: str
    word_counts: tuple[int, int] = field(default=WORD_COUNTS, kw_only=True)

    def question(self, number: int) -> Question:
        """Returns request number `number`."""
        chance = random.Random(f"{self.seed} {number}")
        pictures = self.pictures(chance, number)
        content = [_image(head, photo) for head, photo in pictures]
        text = self.text(chance)
        body: dict[str, Any] = {
            "model": self.model,
            "messages": [{"role": "user", "content": [*content, {"type": "text", "text": text}]}],
            "max_tokens": self.token_count,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        head, photo = pictures[0]
        first_picture = hashlib.sha256(head + photo.rest).digest()
        return Question(json.dumps(body).encode(), first_picture)

    def text(self, chance: random.Random) -> str:
        """Returns a prompt's words."""
        return " ".join(chance.choices(TEXT.split(), k=chance.randint(*self.word_counts)))

    def pictures(self, chance: random.Random, number: int) -> list[tuple[bytes, Photo]]:
        """Returns the start and the rest of each picture's file, for request number `number`."""
        photos = chance.choices(self.photos, k=self.picture_count)
        return [(new_head(chance), photo) for photo in photos]


def photos(tile_count: int, *, shrink: int = 1) -> list[Photo]:
    """Returns photos of several sizes that all become so many tiles, one of TILE_COUNTS.

    Args:
        tile_count: of each.
        shrink: makes their edges so much shorter, where it does not matter what decoding takes.
    """
    chance = random.Random(tile_count)
    files = [_file(chance, tile_count, shrink, seed) for seed in range(PHOTO_COUNT)]
    return [Photo(file[2:], base64.b64encode(file[2:]).decode()) for file in files]


def _file(chance: random.Random, tile_count: int, shrink: int, seed: int) -> bytes:
    edges, ratios = (SQUARE_EDGES, SQUARE_RATIOS) if tile_count == 1 else (LONG_EDGES, RATIOS)
    edge = chance.randint(*edges) // shrink
    width, height = edge, round(edge / chance.uniform(*ratios))
    if chance.random() < 0.5:
        width, height = height, width
    return photo("JPEG", width, height, seed)


def new_head(chance: random.Random) -> bytes:
    """Returns a start that makes a file of it that nobody has seen."""
    comment = chance.randbytes(COMMENT_SIZE)
    return JPEG_START + b"\xff\xfe" + struct.pack(">H", 2 + len(comment)) + comment


def _image(head: bytes, photo: Photo) -> dict[str, Any]:
    picture = base64.b64encode(head).decode() + photo.rest_base64
    return {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{picture}"}}
