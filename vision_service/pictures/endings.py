"""Files that lack their end, or say a wrong length, while all of their pixels are there."""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Callable, Iterator

from PIL import Image

from vision_service.pictures.markers import END_OF_IMAGE, START_OF_FRAME, START_OF_SCAN

JPEG_END = bytes([0xFF, END_OF_IMAGE])
# What begins a segment: a marker that has content.
MARKER = re.compile(rb"\xff([\x01-\xcf\xda-\xfe])")
MAX_SEGMENT_COUNT = 4096
COEFFICIENT_COUNT = 64
# A restart in a scan, and what says that there are some (ITU-T T.81, B.2.4.4).
RESTART = re.compile(rb"\xff([\xd0-\xd7])")
RESTART_INTERVAL = b"\xff\xdd\0\4"
# The first bits behind a file's end: each of the four pairs.
BEGINNINGS = (0x2B, 0xB2, 0x65, 0xE4)
TAIL_BYTE_COUNT = 65_536
DIGEST_ROW_COUNT = 64
RIFF_HEADER_BYTE_COUNT = 12


def lengthened_jpeg(data: bytes, decode: Callable[[bytes], Image.Image]) -> Image.Image | None:
    """Returns the picture of a JPEG without its end marker; None if it lacks pixels too.

    Decoders replace missing bits with zeros and do not tell. So other bits are put behind the
    file's end, several times: where they change the picture, it needed them. That shows the lack of
    a single bit, unless it makes no difference that can be seen.

    Args:
        data: the file; its decoder has missed its end.
        decode: decodes a file.
    """
    data = data.removesuffix(b"\xff")  # half of the marker
    if not _has_all_scans(data):
        return None
    digests: set[bytes] = set()
    for tail in _tails(data):
        digests.add(_digest(decode(data + tail + JPEG_END)))
        if len(digests) > 1:
            return None
    image = decode(data + JPEG_END)
    return image if digests == {_digest(image)} else None


def corrected_webp(data: bytes) -> bytes:
    """Returns a WebP with the length that it has, and with the last chunk's padding."""
    position = RIFF_HEADER_BYTE_COUNT
    while position + 8 <= len(data):
        position += 8 + int.from_bytes(data[position + 4 : position + 8], "little")
        if position == len(data):
            data += bytes(position % 2)
        position += position % 2
    return data[:4] + (len(data) - 8).to_bytes(4, "little") + data[8:]


def _tails(data: bytes) -> Iterator[bytes]:
    """Yields what may stand behind a file's end: bits of which the first ones differ each time.

    The decoder of a file with restarts steps over bits that no restart stands before. So these are
    there, in their order from the last one of the file on.
    """
    restarts = RESTART.findall(data)
    first = restarts[-1][0] + 1 if restarts else 0
    for seed, beginning in enumerate(BEGINNINGS):
        noise = random.Random(seed).randbytes(TAIL_BYTE_COUNT)  # noqa: S311 - filler
        body = noise.replace(b"\xff", b"\xfe")
        pieces = [body[place : place + 64] for place in range(0, TAIL_BYTE_COUNT, 64)]
        if restarts or RESTART_INTERVAL in data:
            pieces = [
                piece + bytes([0xFF, 0xD0 + (first + index) % 8])
                for index, piece in enumerate(pieces)
            ]
        yield bytes([beginning]) + b"".join(pieces)


def _digest(image: Image.Image) -> bytes:
    digest = hashlib.sha256()
    for top in range(0, image.height, DIGEST_ROW_COUNT):
        box = (0, top, image.width, min(top + DIGEST_ROW_COUNT, image.height))
        digest.update(image.crop(box).tobytes())
    return digest.digest()


def _has_all_scans(data: bytes) -> bool:
    """Whether the scans' headers promise all bits of all coefficients of all components."""
    component_count = 0
    missing_bit_counts: dict[tuple[int, int], int] = {}
    for marker, content in _segments(data):
        if marker in START_OF_FRAME:
            component_count = content[5]
        elif marker == START_OF_SCAN:
            components = content[1 : 1 + 2 * content[0] : 2]
            first, last, approximation = content[1 + 2 * content[0] :]
            for component in components:
                for coefficient in range(first, last + 1):
                    missing_bit_counts[component, coefficient] = approximation & 15
    is_whole = len(missing_bit_counts) == COEFFICIENT_COUNT * component_count
    return is_whole and not any(missing_bit_counts.values())


def _segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yields marker and content of each segment, without those that have no content."""
    position = 2
    for _ in range(MAX_SEGMENT_COUNT):
        found = MARKER.search(data, position)
        if found is None:
            return
        end = found.end() + int.from_bytes(data[found.end() : found.end() + 2], "big")
        yield found[1][0], data[found.end() + 2 : end]
        position = max(end, found.end())
