"""Image files of all kinds, each damaged in a way that a number decides."""

from __future__ import annotations

import io
import random
import struct
import zlib
from collections.abc import Callable
from functools import lru_cache
from importlib import import_module
from typing import Any

import numpy as np
from PIL import Image

from tests import hostile_pictures as hostile
from vision_service.pictures.chunks import png_chunks
from vision_service.pictures.formats import FORMATS
from vision_service.pictures.rows import PASSES

WIDTH, HEIGHT = 44, 36
# What a number in a header may be changed to, in as many bytes as it has.
NUMBERS = (
    0,
    1,
    2,
    3,
    7,
    8,
    16,
    32,
    127,
    128,
    255,
    256,
    4095,
    65_535,
    2**24 - 1,
    2**31 - 1,
    2**32 - 1,
)
MAX_HEADER_BYTE_COUNT = 120
MAX_SLICE_BYTE_COUNT = 200


def _saved(image: Image.Image, image_format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, image_format, **options)
    return file.getvalue()


def interlaced_png(grey: Image.Image, missing_row_count: int = 0) -> bytes:
    """Returns a PNG that Pillow reads and does not write."""
    values = np.asarray(grey)
    rows = [
        b"\0" + row.tobytes() for x, y, dx, dy in PASSES for row in values[y::dy, x::dx] if row.size
    ]
    pixels = zlib.compress(b"".join(rows[: len(rows) - missing_row_count]))
    return hostile.png_file(grey.size, 8, 0, pixels, is_interlaced=True)


def _top_down_bmp(image: Image.Image) -> bytes:
    data = bytearray(_saved(image, "BMP"))
    data[22:26] = struct.pack("<i", -image.height)
    return bytes(data)


def _run_length_bmp(grey: Image.Image) -> bytes:
    """Returns a BMP in which each pixel is a run of one, bottom row first."""
    rows = np.asarray(grey)[::-1]
    runs = b"".join(b"".join(bytes([1, value]) for value in row) + b"\0\0" for row in rows)
    palette = b"".join(bytes([value, value, value, 0]) for value in range(256))
    offset, runs = 14 + 40 + len(palette), runs + b"\0\1"
    size = (grey.width, grey.height)
    info = struct.pack("<IiiHHIIiiII", 40, *size, 1, 8, 1, len(runs), 0, 0, 256, 0)
    return struct.pack("<2sIHHI", b"BM", offset + len(runs), 0, 0, offset) + info + palette + runs


@lru_cache(maxsize=1)
def originals() -> dict[str, bytes]:
    """Returns whole files by name, of every format that is read, and of the ways to write each."""
    rng = np.random.default_rng(12)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8))
    rgb = coarse.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
    grey = rgb.convert("L")
    alpha, second = Image.merge("RGBA", (*rgb.split(), grey)), rgb.rotate(180)
    palette, deep = rgb.quantize(20), Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    turned = Image.Exif()
    turned[0x0112], turned[0x010F] = 6, "maker"
    frames: dict[str, Any] = {"save_all": True, "append_images": [second]}
    metadata: dict[str, Any] = {"exif": turned, "icc_profile": bytes(range(200))}
    kinds: list[tuple[str, Image.Image, dict[str, Any]]] = [
        ("JPEG", rgb, {}),
        ("JPEG", rgb, {"progressive": True, "subsampling": 0}),
        ("JPEG", rgb, {"restart_marker_blocks": 2, **metadata}),
        ("JPEG", grey, {"comment": b"grey"}),
        ("JPEG", rgb.convert("CMYK"), {}),
        ("MPO", rgb, frames),
        ("PNG", rgb, metadata),
        ("PNG", alpha, {}),
        ("PNG", grey.convert("LA"), {}),
        ("PNG", grey.convert("1"), {}),
        ("PNG", palette, {"transparency": bytes(range(20))}),
        ("PNG", palette, {"bits": 8, **frames}),
        ("PNG", deep, {}),
        ("WEBP", rgb, metadata),
        ("WEBP", alpha, {"lossless": True}),
        ("WEBP", alpha, {"quality": 50}),
        ("WEBP", rgb, frames),
        ("GIF", palette, {"comment": b"gif"}),
        ("GIF", palette, {"transparency": 3, "interlace": 0, **frames}),
        ("BMP", rgb, {}),
        ("BMP", alpha, {}),
        ("BMP", palette, {}),
        ("BMP", grey.convert("1"), {}),
        *(("TIFF", image, {}) for image in (rgb, alpha, palette, deep, grey.convert("F"))),
        *(("TIFF", rgb, {"compression": name}) for name in ("tiff_lzw", "packbits", "jpeg")),
        ("TIFF", rgb, {"compression": "tiff_adobe_deflate", **metadata}),
        ("TIFF", grey.convert("1"), {"compression": "group4"}),
        ("AVIF", rgb, {"exif": turned}),
        ("AVIF", alpha, {}),
    ]
    if "HEIC" in FORMATS:
        import_module("pillow_heif").register_heif_opener()
        kinds += [("HEIF", rgb, {"exif": turned}), ("HEIF", alpha, {})]
    files = {
        f"{index} {format_} {image.mode}": _saved(image, format_, **options)
        for index, (format_, image, options) in enumerate(kinds)
        if format_ in (*FORMATS, "MPO", "HEIF")
    }
    return files | {
        "PNG interlaced": interlaced_png(grey),
        "BMP top down": _top_down_bmp(rgb),
        "BMP runs": _run_length_bmp(grey),
        "WEBP one colour": hostile.short_webp(60, 40),
        "JPEG scans": hostile.progressive_jpeg(64, 5),
    }


def mutated(number: int) -> tuple[str, bytes]:
    """Returns what was done to which file, and the damaged file; the same for the same number."""
    rng = random.Random(number)
    names = list(originals())
    name = rng.choice(names)
    data = bytearray(originals()[name])
    done = []
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        way = rng.choice(WAYS)
        way(data, rng)
        done.append(way.__name__.strip("_"))
    has_right_sums = "PNG" in name and rng.random() < 0.7
    file = _with_right_sums(bytes(data)) if has_right_sums else bytes(data)
    return f"{name}: {', '.join(done)}", file


def _flip(data: bytearray, rng: random.Random) -> None:
    for _ in range(rng.randint(1, 12)):
        data[_place(data, rng)] ^= 1 << rng.randrange(8)


def _fill(data: bytearray, rng: random.Random) -> None:
    start, size = _place(data, rng), rng.randint(1, MAX_SLICE_BYTE_COUNT)
    size = min(size, len(data) - start)
    data[start : start + size] = rng.choice((bytes(size), b"\xff" * size, rng.randbytes(size)))


def _cut(data: bytearray, rng: random.Random) -> None:
    del data[max(4, _place(data, rng)) :]


def _remove(data: bytearray, rng: random.Random) -> None:
    start = _place(data, rng)
    del data[start : start + rng.randint(1, MAX_SLICE_BYTE_COUNT)]


def _repeat(data: bytearray, rng: random.Random) -> None:
    start = _place(data, rng)
    piece = data[start : start + rng.randint(1, MAX_SLICE_BYTE_COUNT)]
    place = _place(data, rng)
    data[place:place] = piece * rng.choice((1, 2, 50))


def _splice(data: bytearray, rng: random.Random) -> None:
    other = rng.choice(list(originals().values()))
    data[_place(data, rng) :] = other[rng.randrange(len(other)) :]


def _renumber(data: bytearray, rng: random.Random) -> None:
    """Changes a number, mostly of a header."""
    place = rng.randrange(min(len(data), MAX_HEADER_BYTE_COUNT))
    byte_count = rng.choice((1, 2, 4))
    number = rng.choice(NUMBERS) % 256**byte_count
    data[place : place + byte_count] = number.to_bytes(byte_count, rng.choice(("big", "little")))


def _double_chunk(data: bytearray, rng: random.Random) -> None:
    """Has a PNG's chunk twice; in other files, some bytes."""
    chunks = list(png_chunks(bytes(data)))
    if not chunks:
        return _repeat(data, rng)
    _, start, end = rng.choice(chunks)
    place = rng.choice(chunks)[1] - 8
    data[place:place] = data[start - 8 : end]
    return None


def _place(data: bytearray, rng: random.Random) -> int:
    """Returns a place in the file, never in its first bytes, which say what it is."""
    return rng.randrange(min(4, len(data) - 1), len(data)) if len(data) > 1 else 0


def _with_right_sums(data: bytes) -> bytes:
    """Returns a PNG whose checksums hold, so that what is damaged reaches the decoder."""
    fixed = bytearray(data)
    for kind, start, end in png_chunks(data):
        if end <= len(data):
            content = data[start : end - 4]
            fixed[end - 4 : end] = struct.pack(">I", zlib.crc32(kind + content))
    return bytes(fixed)


WAYS: tuple[Callable[[bytearray, random.Random], None], ...] = (
    _flip,
    _fill,
    _cut,
    _remove,
    _repeat,
    _splice,
    _renumber,
    _renumber,
    _double_chunk,
)
