"""Image files that are made to hurt whoever decodes them, each written by hand."""

from __future__ import annotations

import struct
import zlib

from vision_service.pictures.chunks import PNG_SIGNATURE

MEGABYTE = 1_000_000


def segment(marker: int, content: bytes) -> bytes:
    """Returns a segment of a JPEG."""
    return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content


def progressive_jpeg(edge: int = 6320, scan_count: int = 1000) -> bytes:
    """Returns a grey JPEG whose scans after the first refine nothing: a run of empty blocks.

    One Huffman table has a single code, 0, of EOB14: 16,384 blocks and up to as many again have
    nothing, as the 14 bits behind the code say. So a scan over 624,100 blocks has 20 of them.
    """
    block_count = (-(-edge // 8)) ** 2
    header = [
        b"\xff\xd8",
        segment(0xDB, b"\0" + bytes([1] * 64)),
        segment(0xC2, struct.pack(">BHHB", 8, edge, edge, 1) + bytes([1, 0x11, 0])),
        segment(0xC4, _one_code(0x00, 0x00)),
        segment(0xC4, _one_code(0x10, 0xE0)),
    ]
    # The first scan has a bit for each block, of a difference of no bits.
    first = _scan(0, 0, 0x01, bytes(-(-block_count // 8)))
    code_count = block_count // (2**15 - 1) + 1
    bits = int("0" + code_count * ("0" + 14 * "1") + 8 * "1", 2) >> 8 - -15 * code_count % 8
    body = bits.to_bytes(-(-15 * code_count // 8), "big").replace(b"\xff", b"\xff\0")
    start = _scan(1, 63, 0x01, body)
    refinement = _scan(1, 63, 0x10, body)
    return b"".join([*header, first, start, *[refinement] * scan_count, b"\xff\xd9"])


def filled_jpeg(byte_count: int = 19 * MEGABYTE) -> bytes:
    """Returns a JPEG that consists of fill bytes."""
    return b"\xff\xd8" + b"\xff" * byte_count + progressive_jpeg(16, 1)[2:]


def run_length_bmp(byte_count: int = 18 * MEGABYTE) -> bytes:
    """Returns a BMP of runs: escapes that move by nothing."""
    palette = bytes(4 * 256)
    offset = 14 + 40 + len(palette)
    file = struct.pack("<2sIHHI", b"BM", offset + byte_count, 0, 0, offset)
    info = struct.pack("<IiiHHIIiiII", 40, 1000, 1000, 1, 8, 1, byte_count, 0, 0, 256, 0)
    return file + info + palette + b"\x00\x02\x00\x00" * (byte_count // 4)


def chunk(kind: bytes, content: bytes = b"") -> bytes:
    """Returns a chunk of a PNG."""
    crc = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + crc


def png_file(
    size: tuple[int, int],
    bits: int,
    colour: int,
    rows: bytes,
    *,
    before: bytes = b"",
    is_interlaced: bool = False,
) -> bytes:
    """Returns a PNG of this header and these compressed rows, with other chunks before them."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", *size, bits, colour, 0, 0, is_interlaced))
    return PNG_SIGNATURE + header + before + chunk(b"IDAT", rows) + chunk(b"IEND")


def png(width: int, height: int, before: bytes = b"") -> bytes:
    """Returns a grey PNG of zeros, with other chunks before its pixels."""
    packer = zlib.compressobj(9)
    row = bytes(1 + width)
    pixels = b"".join(packer.compress(row * 1000) for _ in range(height // 1000))
    pixels += packer.compress(row * (height % 1000)) + packer.flush()
    return png_file((width, height), 8, 0, pixels, before=before)


def chunky_png(byte_count: int = 12 * MEGABYTE) -> bytes:
    """Returns a PNG of empty chunks."""
    return png(2, 2, before=chunk(b"teSt") * (byte_count // 12))


def tall_png() -> bytes:
    """Returns 40 megapixels of two columns, which resizing makes 36 GB of."""
    return png(2, 20_000_000)


def short_webp(width: int = 16383, height: int = 2441) -> bytes:
    """Returns 40 megapixels of one colour in 38 bytes."""
    bits = 0x2F | (width - 1) << 8 | (height - 1) << 22
    # No transforms, no colour cache, no meta codes, and five codes of one symbol, which takes none.
    body = bits.to_bytes(5, "little") + _one_symbol_codes()
    body += bytes(len(body) % 2)
    riff = b"WEBPVP8L" + struct.pack("<I", len(body)) + body
    return b"RIFF" + struct.pack("<I", len(riff)) + riff


def _one_code(table: int, symbol: int) -> bytes:
    return bytes([table, 1, *[0] * 15, symbol])


def _scan(first: int, last: int, approximation: int, body: bytes) -> bytes:
    return segment(0xDA, bytes([1, 1, 0x00, first, last, approximation])) + body


def _one_symbol_codes() -> bytes:
    # Bit by bit, lowest first: no transform, no cache, no meta code; then for each of the five
    # codes "simple", "one symbol", "of one bit", and the symbol.
    fields = [0, 0, 0, *[1, 0, 0, 0] * 5]
    value = sum(bit << place for place, bit in enumerate(fields))
    return value.to_bytes(-(-len(fields) // 8) + 6, "little")
