"""Small picture files that cost a decoder much."""

from __future__ import annotations

import struct
import zlib

MIB = 1024 * 1024
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# A table whose one code is a single 0 bit, so that zeros are as many symbols as one likes.
ONE_CODE = bytes([1] + [0] * 15)
# WebP without loss, 16383 x 2441 pixels of one colour.
WEBP_BOMB = bytes.fromhex("524946461a000000574542505650384c0e0000002ffe3f6202071011fd0f4444ff03")


def progressive_jpeg(scan_count: int = 1000, edge: int = 6320) -> bytes:
    """Returns a grey JPEG of many refinement scans: each has a decoder visit every coefficient."""
    block_count = (edge // 8) ** 2
    frame = _segment(0xC2, struct.pack(">BHHBBBB", 8, edge, edge, 1, 1, 0x11, 0))
    tables = _segment(0xDB, b"\0" + b"\1" * 64)
    tables += _segment(0xC4, b"\x00" + ONE_CODE + b"\x00")  # DC: no difference
    tables += _segment(0xC4, b"\x10" + ONE_CODE + b"\xe0")  # AC: 16,384 blocks or more end here
    first = _scan(0, 0, 0x01) + bytes(block_count // 8 + 1)
    refinement = _scan(1, 63, 0x10) + bytes((block_count // 16384 + 1) * 15 // 8 + 1)
    return b"\xff\xd8" + tables + frame + first + refinement * scan_count + b"\xff\xd9"


def _segment(marker: int, data: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data


def _scan(first: int, last: int, approximation: int) -> bytes:
    return _segment(0xDA, bytes([1, 1, 0x00, first, last, approximation]))


def filled_jpeg(byte_count: int = 19 * MIB) -> bytes:
    """Returns a JPEG that is all fill bytes."""
    return b"\xff\xd8" + b"\xff" * byte_count + b"\xd9"


def high_png(width: int = 2, height: int = 20_000_000) -> bytes:
    """Returns a black PNG of one bit a pixel, as high as may be."""
    rows = zlib.compress(bytes(height * (1 + (width + 7) // 8)), 9)
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return PNG_SIGNATURE + _chunk(b"IHDR", header) + _chunk(b"IDAT", rows) + _chunk(b"IEND")


def chunked_png(byte_count: int = 12 * MIB) -> bytes:
    """Returns a PNG of a million empty chunks before its one pixel."""
    header = struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0)
    empty = _chunk(b"teSt")
    rest = _chunk(b"IDAT", zlib.compress(b"\0\0")) + _chunk(b"IEND")
    return PNG_SIGNATURE + _chunk(b"IHDR", header) + empty * (byte_count // len(empty)) + rest


def _chunk(kind: bytes, data: bytes = b"") -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def run_length_bmp(byte_count: int = 18 * MIB, edge: int = 6000) -> bytes:
    """Returns a BMP whose run lengths move nowhere, millions of times."""
    palette = bytes(4 * 256)
    offset = 14 + 40 + len(palette)
    pixels = b"\x00\x02\x00\x00" * (byte_count // 4) + b"\x00\x01"
    info = struct.pack("<IiiHHIIiiII", 40, edge, edge, 1, 8, 1, len(pixels), 0, 0, 256, 0)
    file = struct.pack("<2sIHHI", b"BM", offset + len(pixels), 0, 0, offset)
    return file + info + palette + pixels
