"""The structure of an image file: counts of what costs a decoder time, and their limits.

An honest file is far below each limit. One above it would take minutes, most of them for nothing.
"""

from __future__ import annotations

import re

from protos.errors import ImageTooLargeError
from vision_service.decoding.headers import (
    MAX_BLOCK_COUNT,
    MAX_FILL_BYTE_COUNT,
    WITHOUT_CONTENT,
    Header,
    too_many,
)
from vision_service.pictures.markers import END_OF_IMAGE, START_OF_SCAN

# Each scan of a progressive JPEG costs a pass over all its pixels, even if it has no bytes. The
# usual scripts make 6 to 12.
MAX_SCAN_COUNT = 32
# Pillow decodes runs in Python, 3 MB or 10 megapixels a second.
MAX_RUN_BYTE_COUNT = 4 * 1024 * 1024
MAX_RUN_PIXEL_COUNT = 10_000_000
# Decoders read a run of fill bytes again with each piece of the file that they are given.
TOO_LONG_FILL = b"\xff" * (MAX_FILL_BYTE_COUNT + 1)
# A marker that ends a JPEG's scan: neither an escaped FF, nor a restart, nor fill.
SEGMENT = re.compile(rb"\xff([\x01-\xcf\xd8-\xfe])")


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


def check_scans(data: bytes) -> None:
    """Refuses a JPEG with far too many scans, segments or fill bytes; takes under 0.1 s.

    Args:
        data: the file without its metadata, in which runs of FF mean nothing.

    Raises:
        InvalidImageError: it has more of them than an honest file.
    """
    if data.find(TOO_LONG_FILL, 0, _end_of_scans(data)) >= 0:
        raise too_many(f"a run of over {MAX_FILL_BYTE_COUNT} fill bytes", MAX_FILL_BYTE_COUNT)


def _end_of_scans(data: bytes) -> int:
    position, scan_count = 2, 0
    for _ in range(MAX_BLOCK_COUNT):
        found = SEGMENT.search(data, position)
        if found is None:
            return len(data)
        position, marker = found.end(), found[1][0]
        if marker == END_OF_IMAGE:
            return position
        scan_count += marker == START_OF_SCAN
        if scan_count > MAX_SCAN_COUNT:
            raise too_many(f"over {MAX_SCAN_COUNT} scans", MAX_SCAN_COUNT)
        if marker not in WITHOUT_CONTENT:
            position += int.from_bytes(data[position : position + 2], "big")
    raise too_many(f"over {MAX_BLOCK_COUNT} segments", MAX_BLOCK_COUNT)
