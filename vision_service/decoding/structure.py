"""The structure of an image file: counts of what costs a decoder time, and their limits.

An honest file is far below each limit. One above it would take minutes, most of them for nothing.
"""

from __future__ import annotations

import re
import struct

from protos.errors import ImageTooLargeError
from vision_service.decoding.headers import (
    MAX_BLOCK_COUNT,
    WITHOUT_CONTENT,
    Header,
    too_many,
)

# Each scan of a progressive JPEG costs a pass over all its pixels, even if it has no bytes. The
# usual scripts make 6 to 12.
MAX_SCAN_COUNT = 32
# libpng writes a chunk for each 8 KB: 20 MB are 2,560.
MAX_CHUNK_COUNT = 16_384
# Pillow decodes runs in Python, 3 MB or 10 megapixels a second.
MAX_RUN_BYTE_COUNT = 4 * 1024 * 1024
MAX_RUN_PIXEL_COUNT = 10_000_000
# Decoders read a run of fill bytes again with each piece of the file that they are given.
TOO_LONG_FILL = b"\xff" * (MAX_BLOCK_COUNT + 1)
# A marker that ends a JPEG's scan: neither an escaped FF, nor a restart, nor fill.
SEGMENT = re.compile(rb"\xff([\x01-\xcf\xd8-\xfe])")
START_OF_SCAN, END_OF_IMAGE = 0xDA, 0xD9


def check_runs(header: Header, byte_count: int) -> None:
    """Refuses a run-length coded file that would take seconds.

    Raises:
        ImageTooLargeError: it has too many bytes or pixels for that.
    """
    if not header.is_run_length_coded:
        return
    pixel_count = header.width * header.height
    if byte_count > MAX_RUN_BYTE_COUNT or pixel_count > MAX_RUN_PIXEL_COUNT:
        raise ImageTooLargeError(
            f"the image is a run-length coded BMP of {byte_count} bytes and {pixel_count} pixels; "
            f"the limits of those are {MAX_RUN_BYTE_COUNT} and {MAX_RUN_PIXEL_COUNT}",
            field="image",
        )


def check_structure(data: bytes, format_: str) -> None:
    """Refuses a file with far too many parts; takes under 0.1 s.

    Args:
        data: the file.
        format_: as its header says.

    Raises:
        InvalidImageError: it has more scans, chunks or fill bytes than an honest file.
    """
    if format_ == "JPEG":
        _check_jpeg(data)
    elif format_ == "PNG":
        _check_chunks(data, 8, ">I4x", 12)
    elif format_ == "WEBP":
        _check_chunks(data, 12, "<4xI", 8)


def _check_jpeg(data: bytes) -> None:
    if TOO_LONG_FILL in data:
        raise too_many(f"a run of over {MAX_BLOCK_COUNT} fill bytes", MAX_BLOCK_COUNT)
    position, scan_count = 2, 0
    for _ in range(MAX_BLOCK_COUNT):
        found = SEGMENT.search(data, position)
        if found is None or (marker := found[1][0]) == END_OF_IMAGE:
            return
        scan_count += marker == START_OF_SCAN
        if scan_count > MAX_SCAN_COUNT:
            raise too_many(f"over {MAX_SCAN_COUNT} scans", MAX_SCAN_COUNT)
        position = found.end()
        if marker not in WITHOUT_CONTENT:
            position += int.from_bytes(data[position : position + 2], "big")
    raise too_many(f"over {MAX_BLOCK_COUNT} segments", MAX_BLOCK_COUNT)


def _check_chunks(data: bytes, position: int, head: str, overhead: int) -> None:
    """Steps over chunks; `head` finds the length, `overhead` is what a chunk has besides."""
    for _ in range(MAX_CHUNK_COUNT):
        if position + struct.calcsize(head) > len(data):
            return
        (size,) = struct.unpack_from(head, data, position)
        position += size + overhead
    raise too_many(f"over {MAX_CHUNK_COUNT} chunks", MAX_CHUNK_COUNT)
