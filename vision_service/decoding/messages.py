"""What the service and a worker tell each other: one line of JSON each."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import TypeVar

from vision_service.pictures.transparency import Transparency
from vision_service.tiling import TilePolicy

# More than any message has, so that one read takes it whole.
MAX_MESSAGE_BYTE_COUNT = 16_384
Message = TypeVar("Message")


@dataclass(frozen=True)
class Order:
    """A file to decode; the descriptors of the file and of the tiles' place go with it.

    Without the latter nothing is decoded: only how it would be cut is told.

    Attributes:
        file_byte_count: of the file.
        format: as its header says.
        tile_size: edge of a tile, in pixels.
        max_tile_count: most tiles without the thumbnail.
        is_dynamic: of the policy, as the next two.
        min_tile_count: see there.
        has_thumbnail: see there.
        max_pixel_count: most pixels of the image.
        transparency: what transparent pixels become; see `colours.to_rgb`.
        thread_count: that may resize it.
        cpu_seconds: that decoding and tiling may take, all threads together.
        memory_byte_count: that they may take.
    """

    file_byte_count: int
    format: str
    tile_size: int
    max_tile_count: int
    is_dynamic: bool
    min_tile_count: int
    has_thumbnail: bool
    max_pixel_count: int
    transparency: Transparency
    thread_count: int
    cpu_seconds: float
    memory_byte_count: int

    @property
    def policy(self) -> TilePolicy:
        return TilePolicy(self.is_dynamic, self.min_tile_count, self.has_thumbnail)


@dataclass(frozen=True)
class Reply:
    """What came of an order.

    Attributes:
        reason: of the error, as in `protos.errors.BY_REASON`; empty when what was ordered is there.
        message: the error's sentence; the traceback of a bug.
        column_count: of the grid.
        row_count: likewise.
        width: of the upright image, in pixels.
        height: likewise.
        seconds: that it took.
    """

    reason: str = ""
    message: str = ""
    column_count: int = 0
    row_count: int = 0
    width: int = 0
    height: int = 0
    seconds: float = 0.0


def dump(message: Order | Reply) -> bytes:
    return json.dumps(dataclasses.asdict(message)).encode() + b"\n"


def load(cls: type[Message], line: bytes) -> Message:
    """Returns the message of a line.

    Raises:
        ValueError: it is no whole line.
        TypeError: it is not made of the class's fields.
    """
    return cls(**json.loads(line))
