"""Container files (TIFF, AVIF, HEIC): the picture's size, from their tables, without a codec.

The work is bounded by the limits below, whatever the file says.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from protos.errors import InvalidImageError

MAX_FIELD_COUNT = 4096
# Each strip or tile of an uncompressed file is decoded by itself. A row each is the most that
# writers make.
MAX_STRIP_COUNT = 65_536
# A tile may stand over the picture's edges. One that has many times its pixels is made to take
# memory.
MAX_TILE_EXCESS = 4
LEAST_TILE_PIXEL_COUNT = 1_048_576
MAX_BOX_COUNT = 4096
# Fields of TIFF 6.0 and of DNG.
WIDTH, HEIGHT, COMPRESSION, STRIP_OFFSETS = 256, 257, 259, 273
TILE_WIDTH, TILE_HEIGHT, TILE_OFFSETS, DNG_VERSION = 322, 323, 324, 50706
# Those that are common, and that libtiff decodes in a known memory.
COMPRESSIONS = {
    1: "none",
    2: "CCITT",
    3: "CCITT group 3",
    4: "CCITT group 4",
    5: "LZW",
    7: "JPEG",
    8: "Deflate",
    32773: "PackBits",
    32946: "Deflate",
    50000: "Zstandard",
}
# Bytes of a value of each of TIFF's types; by struct's letters, those that hold one integer.
TYPE_SIZES = dict(zip(range(1, 14), (1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8, 4), strict=True))
TYPE_SIZES |= {16: 8, 17: 8, 18: 8}
INTEGERS = {1: "B", 3: "H", 4: "I", 16: "Q"}
# Boxes that hold boxes, and how many bytes stand before those (ISO/IEC 14496-12).
HOLDERS = {b"meta": 4, b"iprp": 0, b"ipco": 0, b"moov": 0, b"trak": 0}


@dataclass(frozen=True)
class Field:
    """A field of a TIFF's directory.

    Attributes:
        count: of its values.
        byte_count: of them together.
        value: the first one, of an integer that stands in the directory itself; else 0.
    """

    count: int
    byte_count: int
    value: int


def tiff_size(data: bytes) -> tuple[int, int]:
    """Returns width and height of a TIFF's first picture.

    Raises:
        IndexError, struct.error: the file ends before they are known.
        InvalidImageError: its directory is too large, or what it says is not decoded here.
    """
    fields = _tiff_fields(data)
    width, height = _value(fields, WIDTH), _value(fields, HEIGHT)
    if not width or not height:
        raise IndexError
    if DNG_VERSION in fields:
        raise _refusal("the image is a camera's raw file (DNG); send it as a JPEG or PNG file")
    compression = _value(fields, COMPRESSION, 1)
    if compression not in COMPRESSIONS:
        names = ", ".join(dict.fromkeys(COMPRESSIONS.values()))
        raise _refusal(
            f"the image is a TIFF file of compression {compression}; those that are decoded are "
            f"{names}"
        )
    _check_parts(fields, width * height)
    return width, height


def _check_parts(fields: dict[int, Field], pixel_count: int) -> None:
    """Refuses what takes far more time or memory than the pixels do."""
    part_count = sum(fields[tag].count for tag in (STRIP_OFFSETS, TILE_OFFSETS) if tag in fields)
    if part_count > MAX_STRIP_COUNT:
        raise _refusal(
            f"the image file has {part_count} strips or tiles; the limit is {MAX_STRIP_COUNT}"
        )
    tile_pixel_count = _value(fields, TILE_WIDTH) * _value(fields, TILE_HEIGHT)
    limit = max(MAX_TILE_EXCESS * pixel_count, LEAST_TILE_PIXEL_COUNT)
    if tile_pixel_count > limit:
        raise _refusal(
            f"the image file has tiles of {tile_pixel_count} pixels; the limit is {limit}"
        )


def _tiff_fields(data: bytes) -> dict[int, Field]:
    """Returns the fields of the first directory by their tags."""
    order = "<" if data[:2] == b"II" else ">"
    is_big = 43 in (data[2], data[3])
    # Of BigTIFF: 64 bits for what has 32 or 16 bits in TIFF 6.0.
    place, count, head, cell = ("8xQ", "Q", "HHQ", 8) if is_big else ("4xI", "H", "HHI", 4)
    (position,) = struct.unpack_from(order + place, data)
    (field_count,) = struct.unpack_from(order + count, data, position)
    if field_count > MAX_FIELD_COUNT:
        raise _refusal(f"the image file has {field_count} fields; the limit is {MAX_FIELD_COUNT}")
    position += struct.calcsize("<" + count)
    size = struct.calcsize("<" + head) + cell
    fields = {}
    for start in range(position, position + field_count * size, size):
        tag, type_, value_count = struct.unpack_from(order + head, data, start)
        byte_count = TYPE_SIZES.get(type_, 0) * value_count
        value = 0
        if type_ in INTEGERS and 0 < byte_count <= cell:
            (value,) = struct.unpack_from(order + INTEGERS[type_], data, start + size - cell)
        fields[tag] = Field(value_count, byte_count, value)
    total = sum(field.byte_count for field in fields.values() if field.byte_count > cell)
    if total > len(data):
        raise _refusal(f"the image file has fields of {total} bytes; it has {len(data)} itself")
    return fields


def _value(fields: dict[int, Field], tag: int, default: int = 0) -> int:
    return fields[tag].value if tag in fields else default


def media_size(data: bytes) -> tuple[int, int]:
    """Returns width and height of the largest picture in an AVIF or HEIC file.

    Raises:
        IndexError, struct.error: the file names none, or ends before it.
        InvalidImageError: it has too many boxes.
    """
    sizes: list[tuple[int, int]] = []
    for kind, start, end in _boxes(data):
        if kind == b"ispe":
            width, height = struct.unpack_from(">4xII", data, start)
            sizes.append((width, height))
        elif kind == b"tkhd":  # of a sequence; 16 bits before the point, and 16 behind it
            width, height = struct.unpack_from(">II", data, end - 8)
            sizes.append((width >> 16, height >> 16))
    if not sizes:
        raise IndexError
    return max(sizes, key=lambda size: size[0] * size[1])


def _boxes(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yields kind, start and end of the content of each box that does not hold others."""
    open_ranges = [(0, len(data))]
    for _ in range(MAX_BOX_COUNT):
        while open_ranges and open_ranges[-1][0] + 8 > open_ranges[-1][1]:
            open_ranges.pop()
        if not open_ranges:
            return
        position, limit = open_ranges[-1]
        size, kind = struct.unpack_from(">I4s", data, position)
        start = position + 8
        if size == 1:
            (size,) = struct.unpack_from(">Q", data, start)
            start += 8
        end = min(position + size if size else limit, limit)
        open_ranges[-1] = (max(end, start), limit)
        if kind in HOLDERS:
            open_ranges.append((start + HOLDERS[kind], end))
        else:
            yield kind, start, end
    raise _refusal(f"the image file has over {MAX_BOX_COUNT} boxes; the limit is {MAX_BOX_COUNT}")


def _refusal(sentence: str) -> InvalidImageError:
    return InvalidImageError(sentence, field="image")
