"""What a prompt is made of before it is tokenized: texts, special tokens and places of images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby

from llm_service.tokenizer import IMAGE_END, IMAGE_START, Tokenizer

PLACEHOLDER = "<image>"


@dataclass(frozen=True)
class SpecialToken:
    """A token that enters a prompt by its id alone; no text becomes it."""

    content: str


@dataclass(frozen=True)
class Tag:
    """A word of a format, e.g. "<tool_call>": one token where the tokenizer has it, else text."""

    content: str


@dataclass(frozen=True)
class ImagePart:
    """The place of the next image."""


Piece = str | SpecialToken | Tag | ImagePart


def with_images(text: str, count: int = -1) -> Iterator[Piece]:
    """Yields a text with an image at each "<image>", or at the first `count` of them."""
    before, *others = text.split(PLACEHOLDER, count)
    yield before
    for other in others:
        yield from (*image_place(), other)


def image_place() -> tuple[Piece, ...]:
    """Returns an image's place between the tokens that mark its begin and end."""
    return SpecialToken(IMAGE_START), ImagePart(), SpecialToken(IMAGE_END)


def tokenized(tokenizer: Tokenizer, pieces: Iterable[Piece]) -> tuple[tuple[int, ...], ...]:
    """Returns the token ids before, between and after the images.

    Texts that touch are one text, as merges may cross their border.
    """
    segments: list[list[int]] = [[] if tokenizer.bos_id is None else [tokenizer.bos_id]]
    known = (_known(tokenizer, piece) for piece in pieces)
    for is_text, run in groupby(known, lambda piece: isinstance(piece, str)):
        if is_text:
            segments[-1].extend(tokenizer.encode("".join(map(str, run))))
            continue
        for piece in run:
            if isinstance(piece, SpecialToken):
                segments[-1].append(tokenizer.special_id(piece.content))
            else:
                segments.append([])
    return tuple(map(tuple, segments))


def _known(tokenizer: Tokenizer, piece: Piece) -> str | SpecialToken | ImagePart:
    if not isinstance(piece, Tag):
        return piece
    return SpecialToken(piece.content) if tokenizer.has_token(piece.content) else piece.content
