"""What a vision service and the host of its engine say to each other, once the engine is warm."""

from __future__ import annotations

import msgspec


class SlotLayout(msgspec.Struct, frozen=True):
    """How large the batches are that have room in the memory of both, and of what.

    Attributes:
        max_tile_count: the largest batch.
        tile_size: edge of a tile in pixels.
        tokens_per_tile: rows of an embedding.
        hidden_size: width of a row.
        dtype: element type of the rows, e.g. "bfloat16".
    """

    max_tile_count: int
    tile_size: int
    tokens_per_tile: int
    hidden_size: int
    dtype: str


class Facts(msgspec.Struct, frozen=True):
    """What the service has to know of the engine."""

    weights_sha256: bytes
    layout: SlotLayout


class Memory(msgspec.Struct, tag="memory", frozen=True):
    """Comes first, with the descriptor of the memory of both."""


class Encode(msgspec.Struct, tag="encode", frozen=True):
    """A batch lies in a slot: of each of its images so many tiles, one image behind the other.

    The slot is the host's until it answers.
    """

    slot: int
    tile_counts: list[int]


class Encoded(msgspec.Struct, tag="encoded", frozen=True):
    """The slot has the batch's embeddings; of which images they are finite."""

    slot: int
    padding_tile_count: int
    are_finite: list[bool]


class Refused(msgspec.Struct, tag="refused", frozen=True):
    """There was no memory for the batch: a sentence for the log."""

    slot: int
    sentence: str


Reply = Encoded | Refused
