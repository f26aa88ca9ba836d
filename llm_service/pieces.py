"""What a prompt is made of before it is tokenized: texts, control tokens and places of images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby

from llm_service.tokenizer import IMAGE_END, IMAGE_START, MESSAGE_END, MESSAGE_START, Tokenizer

PLACEHOLDER = "<image>"


@dataclass(frozen=True)
class ControlToken:
    """A token that enters a prompt by its id alone; no text becomes it."""

    content: str


@dataclass(frozen=True)
class ImagePart:
    """The place of the next image."""


Piece = str | ControlToken | ImagePart


@dataclass(frozen=True)
class Turn:
    """One turn of a conversation.

    Attributes:
        heading: who speaks, with the line feed after it.
        pieces: what is said.
        always_ends: whether a turn in which nothing is said has an end, too.
    """

    heading: tuple[Piece, ...]
    pieces: tuple[Piece, ...]
    always_ends: bool = False

    def laid_out(self, separator: str) -> tuple[list[Piece], list[Piece]]:
        """Returns the turn, and its end: none where nothing is said, as in the reference."""
        said = [piece for piece in self.pieces if piece != ""]
        start = [ControlToken(MESSAGE_START), *self.heading, *said]
        has_end = said or self.always_ends
        return start, [ControlToken(MESSAGE_END), separator] if has_end else []


def with_images(text: str, count: int = -1) -> Iterator[Piece]:
    """Yields a text with an image at each "<image>", or at the first `count` of them."""
    before, *others = text.split(PLACEHOLDER, count)
    yield before
    for other in others:
        yield from (*image_place(), other)


def image_place() -> tuple[Piece, ...]:
    """Returns an image's place between the tokens that mark its begin and end."""
    return ControlToken(IMAGE_START), ImagePart(), ControlToken(IMAGE_END)


def lines(pieces: Iterable[Iterable[Piece]]) -> Iterator[Piece]:
    """Yields what stands in lines, with line feeds between them."""
    for index, line in enumerate(pieces):
        if index:
            yield "\n"
        yield from line


def tokenized(
    tokenizer: Tokenizer, pieces: Iterable[Piece], *, has_beginning: bool = True
) -> tuple[tuple[int, ...], ...]:
    """Returns the token ids before, between and after the images.

    Texts that touch are one text, as merges and tags may cross their border.

    Args:
        tokenizer: the model's.
        pieces: the prompt.
        has_beginning: whether the beginning token comes first, where the model has one.
    """
    bos_id = tokenizer.bos_id if has_beginning else None
    segments: list[list[int]] = [[] if bos_id is None else [bos_id]]
    for is_text, run in groupby(pieces, lambda piece: isinstance(piece, str)):
        if is_text:
            segments[-1].extend(tokenizer.encode("".join(map(str, run))))
            continue
        for piece in run:
            if isinstance(piece, ControlToken):
                segments[-1].append(tokenizer.special_id(piece.content))
            else:
                segments.append([])
    return tuple(map(tuple, segments))
