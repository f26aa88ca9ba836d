"""Headers of image files: what a file says of itself, read without decoding it.

Nothing here runs a codec, and the work is bounded by MAX_BLOCK_COUNT and its like, whatever the
file's size.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from protos.errors import InvalidImageError
from vision_service.decoding.containers import media_size, tiff_size
from vision_service.pictures.formats import image_format
from vision_service.pictures.markers import END_OF_IMAGE, START_OF_FRAME

# Blocks (segments, extensions) before the pixels; a profile or a preview of 48 MB that is cut into
# JPEG's segments of 64 KB has 768.
MAX_BLOCK_COUNT = 16_384
# GIF cuts a comment of 48 MB into so many.
MAX_SUB_BLOCK_COUNT = 200_000
# Bytes between a JPEG's segments.
MAX_FILL_BYTE_COUNT = 4096
# Markers of JPEG: frames whose scans refine each other.
PROGRESSIVE = frozenset({0xC2, 0xC6, 0xCA, 0xCE})
# Those that Pillow does not step over: to it, what follows is bytes between segments.
WITHOUT_CONTENT = frozenset({*range(0xC0), 0xC8, *range(0xD0, 0xDA), *range(0xF0, 0xFE)})
RLE_COMPRESSIONS = (1, 2)
# PNG specification, table 12: bits a sample, by colour type.
PNG_BITS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}


@dataclass(frozen=True)
class Header:
    """What decides the cost of decoding a file.

    Attributes:
        format: one of `formats.FORMATS`.
        width: in pixels, as stored.
        height: likewise.
        is_run_length_coded: a BMP of runs, which Pillow decodes in Python.
        coefficient_byte_count: what libjpeg keeps of a progressive JPEG while it reads the scans.
    """

    format: str
    width: int
    height: int
    is_run_length_coded: bool = False
    coefficient_byte_count: int = 0


def read_header(data: bytes) -> Header:
    """Returns what the file's header says.

    Raises:
        InvalidImageError: not of `formats.FORMATS`, or no size within MAX_BLOCK_COUNT.
    """
    format_ = image_format(data)
    try:
        return READERS[format_](data)
    except (IndexError, struct.error) as error:
        raise InvalidImageError(
            f"the image file is damaged or cut short: its {format_} header has no size",
            field="image",
        ) from error


def too_many(found: str, limit: int) -> InvalidImageError:
    """Returns the refusal of a file that has too much of something that takes time."""
    return InvalidImageError(f"the image file has {found}; the limit is {limit}", field="image")


def not_read(what: str) -> InvalidImageError:
    """Returns the refusal of a file of a kind that is not read."""
    return InvalidImageError(f"the image is {what}", field="image")


def jpeg_segments(data: bytes, position: int) -> Iterator[tuple[int, int]]:
    """Yields the marker of each segment from a position on, and where its content begins.

    It goes on behind the content as its length says, also behind a frame's or a scan's header.

    Raises:
        IndexError, struct.error: the file ends before the last segment does.
        InvalidImageError: too many segments, or bytes between them.
    """
    padding = 0
    for _ in range(MAX_BLOCK_COUNT):
        while data[position] != 0xFF or data[position + 1] in (0x00, 0xFF):
            position += 1
            padding += 1
            if padding > MAX_FILL_BYTE_COUNT:
                raise too_many(
                    f"over {MAX_FILL_BYTE_COUNT} bytes between its segments", MAX_FILL_BYTE_COUNT
                )
        marker = data[position + 1]
        position += 2
        yield marker, position
        if marker not in WITHOUT_CONTENT:
            position += max(2, *struct.unpack_from(">H", data, position))
    raise too_many(f"over {MAX_BLOCK_COUNT} segments before its pixels", MAX_BLOCK_COUNT)


def gif_blocks(data: bytes, position: int) -> Iterator[tuple[int, int]]:
    """Yields the kind of each block from a position on, and where its content begins.

    It goes on behind an extension's sub-blocks; an image (0x2C) is the last one that is yielded.

    Raises:
        IndexError: the file ends before a block does.
        InvalidImageError: too many sub-blocks.
    """
    left = MAX_SUB_BLOCK_COUNT
    for _ in range(MAX_BLOCK_COUNT):
        kind = data[position]
        yield kind, position + 1
        if kind in (0x2C, 0x3B):
            return
        position += 1
        if kind == 0x21:
            position, left = _behind_sub_blocks(data, position + 1, left)
    raise too_many(f"over {MAX_BLOCK_COUNT} blocks before its pixels", MAX_BLOCK_COUNT)


def _behind_sub_blocks(data: bytes, position: int, left: int) -> tuple[int, int]:
    """Returns what follows a run of sub-blocks, and how many more there may be after it."""
    for index in range(left):
        size = data[position]
        position += 1 + size
        if not size:
            return position, left - index
    raise too_many(f"over {MAX_SUB_BLOCK_COUNT} sub-blocks", MAX_SUB_BLOCK_COUNT)


def _read_jpeg(data: bytes) -> Header:
    for marker, position in jpeg_segments(data, 2):
        if marker in START_OF_FRAME:
            bits, height, width, component_count = struct.unpack_from(">BHHB", data, position + 2)
            if bits != 8:
                raise not_read(f"a JPEG of {bits} bits a sample; 8 are read")
            if component_count not in (1, 3, 4):
                raise not_read(f"a JPEG of {component_count} components; 1, 3 and 4 are read")
            coefficients = 0
            if marker in PROGRESSIVE:
                samplings = data[position + 9 : position + 8 + 3 * component_count : 3]
                coefficients = _coefficient_byte_count(width * height, samplings)
            return Header("JPEG", width, height, coefficient_byte_count=coefficients)
        if marker == END_OF_IMAGE:
            break
    raise IndexError


def _coefficient_byte_count(pixel_count: int, samplings: bytes) -> int:
    """Returns two bytes a sample: a component has all pixels, or fewer as its sampling says."""
    areas = [(sampling >> 4) * (sampling & 15) for sampling in samplings]
    return 2 * pixel_count * sum(areas) // max(1, *areas, 1)


def _read_png(data: bytes) -> Header:
    # The specification says that this chunk is the first one.
    if data[12:16] != b"IHDR":
        raise IndexError
    width, height, bits, colour = struct.unpack_from(">IIBB", data, 16)
    if bits not in PNG_BITS.get(colour, ()):
        raise not_read(f"a PNG of colour type {colour} with {bits} bits, which PNG does not have")
    return Header("PNG", width, height)


def _read_webp(data: bytes) -> Header:
    kind = data[12:16]
    if kind == b"VP8X":
        return Header("WEBP", _uint24(data, 24) + 1, _uint24(data, 27) + 1)
    if kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        return Header("WEBP", (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1)
    width, height = struct.unpack_from("<HH", data, 26)
    return Header("WEBP", width & 0x3FFF, height & 0x3FFF)


def _read_bmp(data: bytes) -> Header:
    (header_size,) = struct.unpack_from("<I", data, 14)
    if header_size == 12:  # that of OS/2 1.x
        return Header("BMP", *struct.unpack_from("<HH", data, 18))
    width, height, _, _, compression = struct.unpack_from("<iiHHI", data, 18)
    # Rows from the top down have a negative height.
    return Header("BMP", abs(width), abs(height), compression in RLE_COMPRESSIONS)


def _read_gif(data: bytes) -> Header:
    """Returns the screen's size, or what its first frame makes of it."""
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    for kind, position in gif_blocks(data, 13 + _palette_size(flags)):
        if kind == 0x2C:
            x, y, frame_width, frame_height = struct.unpack_from("<HHHH", data, position)
            return Header("GIF", max(width, x + frame_width), max(height, y + frame_height))
    raise IndexError


def _palette_size(flags: int) -> int:
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _uint24(data: bytes, position: int) -> int:
    low, high = struct.unpack_from("<HB", data, position)
    return int(low | high << 16)


READERS: dict[str, Callable[[bytes], Header]] = {
    "JPEG": _read_jpeg,
    "PNG": _read_png,
    "WEBP": _read_webp,
    "BMP": _read_bmp,
    "GIF": _read_gif,
    "TIFF": lambda data: Header("TIFF", *tiff_size(data)),
    "AVIF": lambda data: Header("AVIF", *media_size(data)),
    "HEIC": lambda data: Header("HEIC", *media_size(data)),
}
