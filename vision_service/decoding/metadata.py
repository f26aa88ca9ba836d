"""Files without their metadata: what says nothing of the pixels never reaches a decoder.

Profiles, texts, previews and comments of any size, damaged ones too, so cost nothing: they are
stepped over, never unpacked. An orientation that they ask for stays, as the shortest EXIF block.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator, Sequence

from protos.errors import InvalidImageError
from vision_service.decoding.headers import jpeg_segments
from vision_service.decoding.orientation import EXIF_PREFIX, UPRIGHT, exif_of, read_orientation
from vision_service.pictures.chunks import png_chunks, riff_chunks
from vision_service.pictures.markers import START_OF_SCAN

# JPEG: these two tell how colours are stored. A shorter one is none to libjpeg.
COLOUR_SEGMENTS = ((0xE0, b"JFIF\0", 14), (0xEE, b"Adobe", 12))
XMP_PREFIX = b"http://ns.adobe.com/xap/1.0/\0"
APPLICATIONS = range(0xE0, 0xF0)
EXIF_SEGMENT, COMMENT = 0xE1, 0xFE
# PNG: those that libpng and Pillow decode by. The frames of an animation are not among them: the
# picture that all viewers show is the one in IDAT.
HEAD_CHUNKS = frozenset({b"IHDR", b"PLTE", b"tRNS"})
TEXT_CHUNKS = frozenset({b"tEXt", b"zTXt", b"iTXt"})
# ImageMagick's, from before PNG had a chunk for it.
EXIF_KEYWORD, XMP_KEYWORD = b"Raw profile type exif", b"XML:com.adobe.xmp"
# Of a text that may hold an orientation; what is longer has it at the beginning.
MAX_TEXT_BYTE_COUNT = 1024 * 1024
# WebP (RFC 9649, 2.7): the chunks that hold pixels, and bits of the VP8X chunk.
PIXEL_CHUNKS = frozenset({b"VP8X", b"VP8 ", b"VP8L", b"ALPH", b"ANIM", b"ANMF"})
METADATA_BITS, EXIF_BIT = 0x2C, 0x08

Range = tuple[int, int]


def without_metadata(data: bytes, format_: str) -> bytes:
    """Returns the file without its metadata; the file itself when it has none.

    Args:
        data: the file, whose header was read.
        format_: as its header says.

    Raises:
        InvalidImageError: it has too many parts, or one that decides the pixels is damaged.
    """
    bare = READERS.get(format_)
    return bare(data) if bare else data


def check_sums(data: bytes, format_: str) -> None:
    """Says which part of a file that was not decoded is damaged, where the format can tell.

    Raises:
        InvalidImageError: a part has the wrong checksum.
    """
    if format_ == "PNG":
        for kind, start, end in png_chunks(data):
            _check_sum(data, kind, start, end)


def _bare_jpeg(data: bytes) -> bytes:
    dropped: list[Range] = []
    exif, xmp = [], b""
    for marker, start, end in _leading_segments(data):
        if _is_of_pixels(marker, data[start:end]):
            continue
        dropped.append((start - 4, end))
        if marker == EXIF_SEGMENT and data.startswith(EXIF_PREFIX, start):
            exif.append(data[start + len(EXIF_PREFIX) : end])
        elif marker == EXIF_SEGMENT and data.startswith(XMP_PREFIX, start):
            xmp = data[start:end]
    orientation = read_orientation(b"".join(exif), xmp)
    return _joined(data, dropped, data[:2] + _exif_segment(orientation), 2)


def _leading_segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yields marker, begin and end of each whole segment's content before the first scan."""
    try:
        for marker, position in jpeg_segments(data, 2):
            if marker == START_OF_SCAN:
                return
            if marker in APPLICATIONS or marker == COMMENT:
                (byte_count,) = struct.unpack_from(">H", data, position)
                if byte_count >= 2 and position + byte_count <= len(data):
                    yield marker, position + 2, position + byte_count
    except (IndexError, struct.error):
        return  # the decoder says that it is cut short


def _is_of_pixels(marker: int, content: bytes) -> bool:
    return any(
        marker == kind and content.startswith(name) and len(content) + 2 >= byte_count
        for kind, name, byte_count in COLOUR_SEGMENTS
    )


def _exif_segment(orientation: int) -> bytes:
    if orientation == UPRIGHT:
        return b""
    content = EXIF_PREFIX + exif_of(orientation)
    return struct.pack(">BBH", 0xFF, EXIF_SEGMENT, len(content) + 2) + content


def _bare_png(data: bytes) -> bytes:
    dropped: list[Range] = []
    metadata: dict[bytes, bytes] = {}
    for kind, start, end in png_chunks(data):
        if kind in HEAD_CHUNKS:
            _check_sum(data, kind, start, end)
        elif kind[:1].islower():
            dropped.append((start - 8, end))
            _collect(metadata, data, kind, start, end)
        elif kind == b"IEND" and end < len(data):
            dropped.append((end, len(data)))
    exif = metadata.get(b"eXIf") or _raw_profile(metadata.get(EXIF_KEYWORD, b""))
    orientation = read_orientation(exif, metadata.get(XMP_KEYWORD, b""))
    (header_byte_count,) = struct.unpack_from(">I", data, 8)
    head_end = 20 + header_byte_count
    return _joined(data, dropped, data[:head_end] + _exif_chunk(orientation), head_end)


def _collect(metadata: dict[bytes, bytes], data: bytes, kind: bytes, start: int, end: int) -> None:
    """Keeps the first block of each kind that may hold an orientation, by chunk or keyword."""
    keyword = data[start : start + 80].partition(b"\0")[0] if kind in TEXT_CHUNKS else kind
    if keyword in metadata or keyword not in (b"eXIf", EXIF_KEYWORD, XMP_KEYWORD):
        return
    content = data[start : max(start, end - 4)]
    if kind == b"eXIf" and _has_right_sum(data, kind, start, end):
        metadata[keyword] = content
    elif kind != b"eXIf":
        metadata[keyword] = _text(kind, content[len(keyword) + 1 :])


def _text(kind: bytes, content: bytes) -> bytes:
    """Returns the beginning of a text, empty where it is damaged; content: behind its keyword."""
    if kind == b"tEXt":
        return content
    is_packed, packed = True, content[1:]
    if kind == b"iTXt":
        is_packed, packed = content[:1] == b"\1", content[2:].split(b"\0", 2)[-1]
    if not is_packed:
        return packed
    try:
        return zlib.decompressobj().decompress(packed, MAX_TEXT_BYTE_COUNT)
    except zlib.error:
        return b""


def _raw_profile(text: bytes) -> bytes:
    """Returns the bytes of ImageMagick's text: an empty line, a name, a count, lines of hex."""
    try:
        return bytes.fromhex(b"".join(text.split(b"\n")[3:]).decode("ascii"))
    except ValueError:
        return b""


def _exif_chunk(orientation: int) -> bytes:
    if orientation == UPRIGHT:
        return b""
    content = b"eXIf" + exif_of(orientation)
    return struct.pack(">I", len(content) - 4) + content + struct.pack(">I", zlib.crc32(content))


def _check_sum(data: bytes, kind: bytes, start: int, end: int) -> None:
    if end <= len(data) and not _has_right_sum(data, kind, start, end):
        raise InvalidImageError(
            f"the image file is damaged: the checksum of its {kind.decode()} chunk is wrong",
            field="image",
        )


def _has_right_sum(data: bytes, kind: bytes, start: int, end: int) -> bool:
    content = memoryview(data)[start : end - 4]
    return data[end - 4 : end] == struct.pack(">I", zlib.crc32(content, zlib.crc32(kind)))


def _bare_webp(data: bytes) -> bytes:
    (riff_byte_count,) = struct.unpack_from("<I", data, 4)
    riff_end = 8 + riff_byte_count
    dropped: list[Range] = []
    metadata: dict[bytes, bytes] = {}
    for kind, start, end in riff_chunks(data, riff_end):
        if kind not in PIXEL_CHUNKS:
            dropped.append((start - 8, min(end + (end - start) % 2, riff_end)))
            metadata.setdefault(kind, data[start:end])
    if riff_end < len(data):
        dropped.append((max(12, riff_end), len(data)))
    if not dropped:
        return data
    orientation = read_orientation(metadata.get(b"EXIF", b""), metadata.get(b"XMP ", b""))
    header, position = _webp_header(data, orientation)
    body = _joined(data, dropped, header, position)
    # What is missing at the end stays missing.
    byte_count = len(b"WEBP") + len(body) + max(0, riff_end - len(data))
    return b"".join([b"RIFF", struct.pack("<I", byte_count & 0xFFFFFFFF), b"WEBP", body])


def _webp_header(data: bytes, orientation: int) -> tuple[bytes, int]:
    """Returns the chunk that says what others there are, with EXIF, and where the next begins."""
    if data[12:16] != b"VP8X":  # the simple form, which has no such chunk and no metadata
        return b"", 12
    (byte_count,) = struct.unpack_from("<I", data, 16)
    end = 20 + byte_count + byte_count % 2
    exif = b"" if orientation == UPRIGHT else exif_of(orientation)
    flags = data[20] & ~METADATA_BITS | (EXIF_BIT if exif else 0)
    added = data[12:20] + bytes([flags]) + data[21:end]
    if exif:
        added += b"EXIF" + struct.pack("<I", len(exif)) + exif
    return added, end


def _joined(data: bytes, dropped: Sequence[Range], head: bytes, position: int) -> bytes:
    """Returns a head, and what follows a position without some ranges behind it.

    It is the file itself when there are none: no copy of what may be tens of megabytes.
    """
    if not dropped:
        return data
    view = memoryview(data)
    kept: list[bytes | memoryview] = [head]
    for start, end in dropped:
        kept.append(view[position:start])
        position = end
    return b"".join([*kept, view[position:]])


READERS: dict[str, Callable[[bytes], bytes]] = {
    "JPEG": _bare_jpeg,
    "PNG": _bare_png,
    "WEBP": _bare_webp,
}
