"""The chunks that PNG and WebP files are made of."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from protos.errors import InvalidImageError

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# libpng writes a chunk for each 8 KB, others for each 1 KB: 48 MB are 6,144 and 49,152.
MAX_CHUNK_COUNT = 65_536

Chunk = tuple[bytes, int, int]


def png_chunks(data: bytes) -> Iterator[Chunk]:
    """Yields the kind of each chunk of a PNG, and where its content begins and the chunk ends.

    The last one may end behind the file's end. What follows something that is no chunk, or IEND,
    is not looked at.

    Raises:
        InvalidImageError: too many chunks.
    """
    position = len(PNG_SIGNATURE)
    for _ in range(MAX_CHUNK_COUNT):
        kind = data[position + 4 : position + 8]
        if len(kind) < 4 or not kind.isalpha():
            return
        (byte_count,) = struct.unpack_from(">I", data, position)
        start, position = position + 8, position + 12 + byte_count
        yield kind, start, position
        if kind == b"IEND":
            return
    raise _too_many()


def riff_chunks(data: bytes, end: int) -> Iterator[Chunk]:
    """Yields the kind of each chunk of a WebP, and where its content begins and ends.

    Args:
        data: the file.
        end: where it says that it ends; the last chunk may end behind that.

    Raises:
        InvalidImageError: too many chunks.
    """
    position, last = 12, min(end, len(data)) - 8
    for _ in range(MAX_CHUNK_COUNT):
        if position > last:
            return
        (byte_count,) = struct.unpack_from("<I", data, position + 4)
        start = position + 8
        position = start + byte_count + byte_count % 2
        yield data[start - 8 : start - 4], start, start + byte_count
    raise _too_many()


def _too_many() -> InvalidImageError:
    return InvalidImageError(
        f"the image file has over {MAX_CHUNK_COUNT} chunks; the limit is {MAX_CHUNK_COUNT}",
        field="image",
    )
