"""Metadata: of any size, damaged or a bomb, it changes no pixel and costs nothing."""

from __future__ import annotations

import random
import struct
import time
import tracemalloc
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from protos.errors import InvalidImageError
from tests import hostile_pictures as hostile
from tests.unit.vision_service.fakes import encoded, picture
from vision_service.decoding.headers import read_header
from vision_service.decoding.metadata import check_sums, without_metadata
from vision_service.decoding.structure import check_scans
from vision_service.tiling import decode

MEGABYTE = 1_000_000
SMALL = picture(36, 20)
PNG, JPEG = encoded(SMALL, "PNG"), encoded(SMALL, "JPEG")
WEBP = encoded(SMALL, "WEBP", lossless=True)
PIXELS = np.asarray(SMALL)
XMP = b'<x:xmpmeta tiff:Orientation="6"/>'
XMP_SEGMENT = b"http://ns.adobe.com/xap/1.0/\0" + XMP


def noise(byte_count: int) -> bytes:
    return random.Random(1).randbytes(byte_count)


def exif(orientation: int, order: str = "<", kind: int = 3) -> bytes:
    """Returns a block of EXIF with a tag before and a tag behind the orientation."""
    value = struct.pack(
        order + {1: "Bxxx", 3: "HH", 4: "I"}[kind], *[orientation, 0][: 1 + (kind == 3)]
    )
    entries = [
        struct.pack(order + "HHII", 0x010F, 2, 4, 0),
        struct.pack(order + "HHI", 0x0112, kind, 1) + value,
        struct.pack(order + "HHII", 0x8769, 4, 1, 0xFFFFFFFF),
    ]
    head = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(order + "IH", 8, len(entries))
    return head + b"".join(entries)


def with_chunk(*chunks: bytes) -> bytes:
    """Returns the PNG with chunks before its pixels."""
    return PNG[:33] + b"".join(chunks) + PNG[33:]


def with_segment(*segments: bytes) -> bytes:
    """Returns the JPEG with segments before its own."""
    return JPEG[:2] + b"".join(segments) + JPEG[2:]


def with_riff_chunk(*chunks: tuple[bytes, bytes], flags: int = 0x2C) -> bytes:
    """Returns the WebP in its long form, with other chunks behind its pixels."""
    head = struct.pack("<BxxxHBHB", flags, SMALL.width - 1, 0, SMALL.height - 1, 0)
    parts = [(b"VP8X", head), *chunks]
    written = [k + struct.pack("<I", len(c)) + c + bytes(len(c) % 2) for k, c in parts]
    body = b"WEBP" + written[0] + WEBP[12:] + b"".join(written[1:])
    return b"RIFF" + struct.pack("<I", len(body)) + body


def bomb() -> bytes:
    """Returns a megabyte that unpacks to a gigabyte of zeros."""
    packer = zlib.compressobj(9, wbits=-15)
    piece = packer.compress(bytes(MEGABYTE)) + packer.flush(zlib.Z_FULL_FLUSH)
    return b"\x78\xda" + 1000 * piece + packer.flush() + bytes(4)


def pixels_of(data: bytes) -> Any:
    format_ = read_header(data).format
    bare = without_metadata(data, format_)
    if format_ == "JPEG":
        check_scans(bare)
    return np.asarray(decode(bare, format_, 10**6))


INTACT: dict[str, Callable[[], bytes]] = {
    "PNG: a large profile": lambda: with_chunk(
        hostile.chunk(b"iCCP", b"screen\0\0" + zlib.compress(noise(1_600_000), 0))
    ),
    "PNG: a text of 10 MB": lambda: with_chunk(hostile.chunk(b"tEXt", b"k\0" + noise(10**7))),
    "PNG: a packed text of 2 MB": lambda: with_chunk(
        hostile.chunk(b"iTXt", b"k\0\1\0\0\0" + zlib.compress(noise(2 * MEGABYTE), 0))
    ),
    "PNG: damaged texts": lambda: with_chunk(
        *[hostile.chunk(kind, b"\xff") for kind in (b"zTXt", b"iTXt", b"tEXt", b"iCCP")],
        *[hostile.chunk(kind, b"") for kind in (b"gAMA", b"cHRM", b"sRGB", b"pHYs", b"tIME")],
        hostile.chunk(b"zTXt", b"k\0\7" + noise(9)),
        hostile.chunk(b"iCCP", b"k\0\7" + noise(9)),
    ),
    "PNG: thousands of texts": lambda: with_chunk(*[hostile.chunk(b"tEXt", b"k\0v")] * 9000),
    "PNG: a wrong checksum of a text": lambda: with_chunk(
        hostile.chunk(b"tEXt", b"k\0v")[:-1] + b"?"
    ),
    "PNG: damaged EXIF": lambda: with_chunk(hostile.chunk(b"eXIf", noise(3000))),
    "PNG: EXIF with a wrong checksum": lambda: with_chunk(
        hostile.chunk(b"eXIf", exif(6))[:-1] + b"?"
    ),
    "PNG: an animation's damaged frames": lambda: with_chunk(
        hostile.chunk(b"acTL", b"\0"), hostile.chunk(b"fcTL", b"\0"), hostile.chunk(b"fdAT", b"")
    ),
    "PNG: a text that is cut short behind the pixels": lambda: PNG[:-12] + PNG[:4] + b"tEXtk",
    "PNG: bytes behind the end": lambda: PNG + noise(5000),
    "JPEG: a profile of 10 MB": lambda: with_segment(
        *[hostile.segment(0xE2, b"ICC_PROFILE\0" + noise(65_000))] * 160
    ),
    "JPEG: EXIF of many segments, damaged": lambda: with_segment(
        *[hostile.segment(0xE1, b"Exif\0\0" + noise(65_000))] * 3
    ),
    "JPEG: a preview, 8BIM and unknown segments": lambda: with_segment(
        hostile.segment(0xE1, b"Exif\0\0" + exif(1) + JPEG),
        hostile.segment(0xED, b"Photoshop 3.0\0" + b"8BIM" * 9),
        *[hostile.segment(marker, JPEG) for marker in range(0xE3, 0xF0)],
    ),
    "JPEG: short known segments": lambda: with_segment(
        hostile.segment(0xE0, b"JFIF\0"),
        hostile.segment(0xEE, b"Adobe"),
        hostile.segment(0xE2, b"MPF\0"),
        hostile.segment(0xE2, b"ICC_PROFILE\0"),
    ),
    "JPEG: FF in a comment": lambda: with_segment(hostile.segment(0xFE, b"\xff" * 60_000)),
    "JPEG: ten thousand comments": lambda: with_segment(*[hostile.segment(0xFE, b"")] * 10_000),
    "JPEG: a film behind the picture": lambda: JPEG + bytes(8) + b"ftypmp42" + b"\xff" * 9000,
    "WebP: a large profile, damaged EXIF": lambda: with_riff_chunk(
        (b"ICCP", noise(5 * MEGABYTE)), (b"EXIF", noise(999)), (b"XMP ", XMP[:9]), (b"ABCD", b"e")
    ),
    "WebP: bytes behind the end": lambda: with_riff_chunk() + noise(500),
    "GIF: a comment of 10 MB": lambda: encoded(SMALL, "GIF", comment=bytes([1]) * 10**7),
}


@pytest.mark.parametrize("name", INTACT)
def test_metadata_changes_no_pixel(name: str) -> None:
    plain = {"JPEG": JPEG, "WebP": WEBP, "GIF:": encoded(SMALL, "GIF")}.get(name[:4], PNG)
    assert np.array_equal(pixels_of(INTACT[name]()), pixels_of(plain))


@pytest.mark.parametrize("data", [PNG, WEBP, encoded(SMALL, "GIF"), encoded(SMALL, "BMP")])
def test_a_file_without_metadata_is_not_copied(data: bytes) -> None:
    assert without_metadata(data, read_header(data).format) is data


RAW_PROFILE = b"\nexif\n%8d\n%s\n" % (len(exif(6)), exif(6).hex().encode())


@pytest.mark.parametrize(
    "data",
    [
        with_segment(hostile.segment(0xE1, b"Exif\0\0" + exif(6))),
        with_segment(hostile.segment(0xE1, b"Exif\0\0" + exif(6, ">"))),
        with_segment(hostile.segment(0xE1, b"Exif\0\0" + exif(6, ">", kind=4))),
        with_segment(
            hostile.segment(0xE1, b"Exif\0\0" + exif(6)[:20]),
            hostile.segment(0xE1, b"Exif\0\0" + exif(6)[20:]),
        ),
        with_segment(hostile.segment(0xE1, XMP_SEGMENT)),
        with_chunk(hostile.chunk(b"eXIf", exif(6))),
        with_chunk(hostile.chunk(b"eXIf", b"Exif\0\0" + exif(6, kind=1))),
        PNG[:-12] + hostile.chunk(b"eXIf", exif(6, ">")) + PNG[-12:],
        with_chunk(hostile.chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP)),
        with_chunk(hostile.chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(XMP))),
        with_chunk(hostile.chunk(b"tEXt", b"Raw profile type exif\0" + RAW_PROFILE)),
        with_chunk(
            hostile.chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(RAW_PROFILE))
        ),
        with_riff_chunk((b"EXIF", exif(6))),
        with_riff_chunk((b"EXIF", b"Exif\0\0" + exif(6))),
        with_riff_chunk((b"ICCP", b"odd"), (b"XMP ", XMP)),
    ],
)
def test_the_orientation_stays(data: bytes) -> None:
    plain = {"JPEG": JPEG, "WEBP": WEBP, "PNG": PNG}[read_header(data).format]
    upright = pixels_of(plain)
    assert np.array_equal(pixels_of(data), np.rot90(upright, -1))


def test_exif_goes_before_xmp() -> None:
    segments = [hostile.segment(0xE1, part) for part in (XMP_SEGMENT, b"Exif\0\0" + exif(1))]
    assert np.array_equal(pixels_of(with_segment(*segments)), pixels_of(JPEG))


@pytest.mark.parametrize("mode", ["CMYK", "L", "RGB"])
def test_the_colours_of_a_jpeg_stay(mode: str) -> None:
    """What Adobe's segment says decides whether CMYK is inverted, and RGB is YCbCr."""
    image = SMALL.convert(mode)
    plain = encoded(image, "JPEG", quality=95, **({"keep_rgb": True} if mode == "RGB" else {}))
    noisy = plain[:2] + hostile.segment(0xE5, b"x") + plain[2:]
    bare = without_metadata(noisy, "JPEG")
    assert bare != noisy
    assert np.array_equal(pixels_of(noisy), np.asarray(decode(plain, "JPEG", 10**6)))


def test_what_decides_the_pixels_of_a_png_stays() -> None:
    palette = SMALL.quantize(16)
    palette.info["transparency"] = bytes(range(0, 160, 10))
    data = encoded(palette, "PNG", transparency=palette.info["transparency"], dpi=(72, 72))
    bare = without_metadata(data, "PNG")
    assert [kind in data for kind in (b"pHYs", b"tRNS", b"PLTE")] == [True, True, True]
    assert [kind in bare for kind in (b"pHYs", b"tRNS", b"PLTE")] == [False, True, True]


def test_an_animation_gives_its_first_frame() -> None:
    for image_format in ("PNG", "WEBP"):
        data = encoded(
            SMALL, image_format, save_all=True, append_images=[SMALL.rotate(180)], lossless=True
        )
        assert np.array_equal(pixels_of(data), PIXELS)


@pytest.mark.parametrize("kind", ["IHDR", "PLTE", "tRNS"])
def test_a_wrong_checksum_of_what_decides_the_pixels_is_named(kind: str) -> None:
    palette = SMALL.quantize(16)
    data = encoded(palette, "PNG", transparency=bytes(16))
    start = data.index(kind.encode())
    (byte_count,) = struct.unpack_from(">I", data, start - 4)
    end = start + 4 + byte_count
    broken = data[:end] + b"\0\0\0\0" + data[end + 4 :]
    with pytest.raises(InvalidImageError, match=f"the checksum of its {kind} chunk is wrong"):
        without_metadata(broken, "PNG")


def test_a_wrong_checksum_of_damaged_pixels_is_named() -> None:
    start = PNG.index(b"IDAT") + 40
    broken = PNG[:start] + bytes([PNG[start] ^ 1]) + PNG[start + 1 :]
    with pytest.raises(InvalidImageError, match="the checksum of its IDAT chunk is wrong"):
        check_sums(broken, "PNG")
    check_sums(PNG, "PNG")
    check_sums(JPEG, "JPEG")


@pytest.mark.parametrize(
    ("kind", "begin"),
    [
        (b"zTXt", b"k\0\0"),
        (b"iCCP", b"k\0\0"),
        (b"iTXt", b"k\0\1\0\0\0"),
        # Those that may hold an orientation, and are unpacked a little.
        (b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0"),
        (b"zTXt", b"Raw profile type exif\0\0"),
    ],
)
def test_a_bomb_costs_nothing(kind: bytes, begin: bytes) -> None:
    data = with_chunk(*[hostile.chunk(kind, begin + bomb())] * 9)
    tracemalloc.start()
    started = time.process_time()
    found = pixels_of(data)
    seconds = time.process_time() - started
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert np.array_equal(found, PIXELS)
    assert seconds < 1
    assert peak < 10 * MEGABYTE
