"""The rows of a PNG: a decoder is content with fewer than there are, and leaves the rest black."""

from __future__ import annotations

import struct
import zlib
from typing import Any

from PIL import Image

from vision_service.pictures.chunks import png_chunks

# Samples a pixel, by the header's colour type.
SAMPLE_COUNTS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
# Adam7 (PNG specification, 8.2): each pass' first column and row, and its steps.
PASSES = (
    *((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4)),
    *((0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)),
)
# Put in the place of the last pixel before the rows come: hardly ever what that pixel really is.
MARKS = {"1": 255, "L": 90, "P": 90, "I;16": 23_130}
COLOUR_MARK = (90, 165, 60, 195)
PIECE_BYTE_COUNT = 1024 * 1024


def load_all_rows(image: Image.Image, data: bytes) -> None:
    """Decodes a picture, and sees that a PNG's compressed rows are all there.

    Args:
        image: opened, and not yet decoded.
        data: its file.

    Raises:
        OSError: rows are missing.
    """
    if image.format != "PNG":
        image.load()
        return
    core: Any = Image.core  # type: ignore[attr-defined]
    last = (image.width - 1, image.height - 1)
    mark = MARKS.get(image.mode, COLOUR_MARK[: len(image.getbands())])
    image.im = core.new(image.mode, image.size)
    image.im.putpixel(last, mark)
    image.load()
    has_mark = image.getpixel(last) == mark
    if (has_mark or image.info.get("interlace")) and not _has_all_rows(data):
        raise OSError("image file is truncated")


def _has_all_rows(data: bytes) -> bool:
    """Unpacks the rows, a piece at a time, and counts their bytes."""
    missing, unpacker = _row_byte_count(data), zlib.decompressobj()
    for kind, start, end in png_chunks(data):
        packed = data[start : end - 4] if kind == b"IDAT" else b""
        while packed and missing > 0:
            missing -= len(unpacker.decompress(packed, PIECE_BYTE_COUNT))
            packed = unpacker.unconsumed_tail
    return missing <= len(unpacker.flush())


def _row_byte_count(data: bytes) -> int:
    """Returns the bytes of all rows, each with the one that names its filter."""
    width, height, bits, colour, _, _, is_interlaced = struct.unpack_from(">IIBBBBB", data, 16)
    sizes = [(width, height)]
    if is_interlaced:
        sizes = [(-(-(width - x) // dx), -(-(height - y) // dy)) for x, y, dx, dy in PASSES]
    pixel_bits = bits * SAMPLE_COUNTS[colour]
    return sum(
        rows * (1 + -(-columns * pixel_bits // 8))
        for columns, rows in sizes
        if columns > 0 and rows > 0
    )
