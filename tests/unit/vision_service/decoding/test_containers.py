"""Containers: the sizes of TIFF, AVIF and HEIC files, and what is refused before it is decoded."""

from __future__ import annotations

import io
import struct
from typing import Any

import pytest
from PIL import Image

from protos.errors import InvalidImageError
from tests.unit.vision_service.fakes import encoded, picture
from vision_service.decoding.containers import media_size, tiff_size
from vision_service.decoding.headers import Header, read_header

SMALL = picture(36, 20)
Fields = list[tuple[int, int, int, int]]


def tiff(fields: Fields, order: str = "<", is_big: bool = False, size: int = 0) -> bytes:
    """Returns a TIFF that is a directory: tag, type, count, and a value or where the values are."""
    entry, head, count = ("HHQQ", "HHHQ", "Q") if is_big else ("HHII", "HI", "H")
    first = (8, 0, 16) if is_big else (8,)
    data = {"<": b"II", ">": b"MM"}[order] + struct.pack(order + head, 42 + is_big, *first)
    data += struct.pack(order + count, len(fields))
    for tag, type_, value_count, value in fields:
        cell = 8 if is_big else 4
        # One value stands at the beginning of its cell.
        letter = {3: "H", 4: "I"}.get(type_, entry[-1]) if value_count == 1 else entry[-1]
        packed = struct.pack(order + letter, value).ljust(cell, b"\0")
        data += struct.pack(order + entry[:-1], tag, type_, value_count) + packed
    return data.ljust(size, b"\0")


SIZE: Fields = [(256, 3, 1, 36), (257, 4, 1, 20)]


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("is_big", [False, True])
def test_the_size_of_each_kind_of_tiff(order: str, is_big: bool) -> None:
    assert tiff_size(tiff(SIZE, order, is_big)) == (36, 20)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("TIFF", {}),
        ("TIFF", {"big_tiff": True}),
        ("TIFF", {"compression": "tiff_lzw", "save_all": True, "append_images": [SMALL]}),
        ("AVIF", {}),
        ("AVIF", {"save_all": True, "append_images": [SMALL.rotate(180)]}),
    ],
)
def test_the_size_is_that_of_pillow(name: str, options: dict[str, Any]) -> None:
    data = encoded(SMALL, name, **options)
    assert read_header(data) == Header(name, 36, 20)
    with Image.open(io.BytesIO(data)) as image:
        assert image.size == (36, 20)


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (tiff(SIZE[:1]), "its TIFF header has no size"),
        (tiff(SIZE)[:12], "its TIFF header has no size"),
        (tiff([(256, 4, 1, 0), (257, 4, 1, 5)]), "its TIFF header has no size"),
        (tiff([*SIZE, (259, 3, 1, 34925)]), "a TIFF file of compression 34925; those that are"),
        (tiff([*SIZE, (259, 3, 1, 6)]), "compression 6; .* none, CCITT"),
        (tiff([*SIZE, (50706, 1, 4, 1)]), "a camera's raw file"),
        (tiff([*SIZE, (273, 4, 70_000, 8)], size=300_000), "70000 strips or tiles"),
        (tiff([*SIZE, (322, 4, 1, 40_000), (323, 4, 1, 40_000)]), "tiles of 1600000000 pixels"),
        (tiff([*SIZE, *[(60_000 + i, 7, 900, 8) for i in range(9)]], size=4000), "of 8100 bytes"),
        (tiff([*SIZE, *[(60_000, 7, 0, 0)] * 5000]), "has 5002 fields; the limit is 4096"),
        (encoded(SMALL, "AVIF")[:60], "its AVIF header has no size"),
        (encoded(SMALL, "AVIF")[:32] + b"\0\0\0\x08free" * 5000, "over 4096 boxes"),
    ],
)
def test_what_is_made_to_be_slow_is_refused(data: bytes, complaint: str) -> None:
    with pytest.raises(InvalidImageError, match=complaint) as caught:
        read_header(data)
    assert caught.value.field == "image"


def test_the_largest_picture_of_a_media_file_counts() -> None:
    def box(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I4s", 8 + len(content), kind) + content

    def ispe(width: int, height: int) -> bytes:
        return box(b"ispe", struct.pack(">4xII", width, height))

    ipco = box(b"ipco", ispe(512, 512) + ispe(4032, 3024) + ispe(320, 240))
    meta = box(b"meta", bytes(4) + box(b"iprp", ipco))
    tkhd = box(b"tkhd", bytes(76) + struct.pack(">II", 5000 << 16, 4000 << 16))
    assert media_size(box(b"ftyp", b"heic") + meta) == (4032, 3024)
    assert media_size(meta + box(b"moov", box(b"trak", tkhd))) == (5000, 4000)
