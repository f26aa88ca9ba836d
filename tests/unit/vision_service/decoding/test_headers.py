"""Headers: every format's size as Pillow has it, and nothing that takes long to read."""

from __future__ import annotations

import io
import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from protos.errors import InvalidImageError
from tests import hostile_pictures as hostile
from tests.unit.vision_service.fakes import encoded, picture
from vision_service.decoding.headers import Header, read_header

SMALL = picture(36, 20)


def _changed(image_format: str, name: bytes, offset: int, byte: int) -> bytes:
    """Returns the picture as a file with another byte so far behind a name."""
    data = bytearray(encoded(SMALL, image_format))
    data[data.index(name) + offset] = byte
    return bytes(data)


@pytest.mark.parametrize(
    ("image_format", "options"),
    [
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("MPO", {"save_all": True, "append_images": [SMALL]}),
        ("PNG", {}),
        ("BMP", {}),
        ("GIF", {"comment": b"x" * 1000}),
        ("WEBP", {}),
        ("WEBP", {"lossless": True}),
        ("WEBP", {"save_all": True, "append_images": [SMALL.rotate(180)]}),
    ],
)
def test_the_size_of_every_format(image_format: str, options: dict[str, Any]) -> None:
    header = read_header(encoded(SMALL, image_format, **options))
    assert header.format == image_format.replace("MPO", "JPEG")
    assert (header.width, header.height) == (36, 20)


@pytest.mark.parametrize(
    ("subsampling", "coefficient_count"), [(0, 3 * 720), (1, 2 * 720), (2, 720 + 360)]
)
def test_a_progressive_jpegs_coefficients(subsampling: int, coefficient_count: int) -> None:
    data = encoded(SMALL, "JPEG", progressive=True, subsampling=subsampling)
    assert read_header(data).coefficient_byte_count == 2 * coefficient_count
    assert read_header(encoded(SMALL, "JPEG")).coefficient_byte_count == 0


def test_a_bmp_of_runs_and_one_from_the_top_down() -> None:
    assert read_header(hostile.run_length_bmp(400)) == Header("BMP", 1000, 1000, True)
    data = bytearray(encoded(SMALL, "BMP"))
    data[22:26] = struct.pack("<i", -20)
    assert read_header(bytes(data)) == Header("BMP", 36, 20)


def test_a_gif_frame_beyond_its_screen_counts() -> None:
    data = bytearray(encoded(SMALL, "GIF"))
    frame = data.index(b",\x00\x00\x00\x00")
    data[frame + 5 : frame + 9] = struct.pack("<HH", 65_535, 300)
    header = read_header(bytes(data))
    assert (header.width, header.height) == (65_535, 300)


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b"no image", "not a JPEG, PNG, WEBP, BMP, GIF, TIFF"),
        (
            hostile.filled_jpeg(5000),
            "over 4096 bytes between its segments; the limit is 4096",
        ),
        (
            b"\xff\xd8" + hostile.segment(0xFE, b"") * 20_000,
            "over 16384 segments before its pixels",
        ),
        (b"GIF89a" + bytes(7) + b"!\xfe\0" * 20_000, "over 16384 blocks before its pixels"),
        (b"GIF89a" + bytes(7) + b"!\xfe" + b"\1x" * 250_000, "over 200000 sub-blocks"),
        (b"\r\n\r\n" + encoded(SMALL, "JPEG"), "4 other bytes before its JPEG data"),
        (b"HTTP/1.1 200 OK\r\n\r\n" + encoded(SMALL, "WEBP"), "19 other bytes before its WEBP"),
        (b"\xef\xbb\xbf" + encoded(SMALL, "PNG"), "3 other bytes .*; send it without them"),
        (bytes(2000) + encoded(SMALL, "GIF"), "not a JPEG, PNG"),
        (_changed("JPEG", b"\xff\xc0", 4, 12), "a JPEG of 12 bits a sample; 8 are read"),
        (_changed("JPEG", b"\xff\xc0", 9, 2), "a JPEG of 2 components; 1, 3 and 4 are read"),
        (_changed("PNG", b"IHDR", 12, 3), "a PNG of colour type 2 with 3 bits, which PNG does not"),
        (encoded(SMALL, "JPEG")[:100], "its JPEG header has no size"),
        (encoded(SMALL, "PNG")[:20], "its PNG header has no size"),
        (encoded(SMALL, "GIF")[:20], "its GIF header has no size"),
        (b"BM" + bytes(12), "its BMP header has no size"),
    ],
)
def test_what_has_no_size_soon_is_refused(data: bytes, complaint: str) -> None:
    with pytest.raises(InvalidImageError, match=complaint) as caught:
        read_header(data)
    assert caught.value.field == "image"


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from([encoded(SMALL, name) for name in ("JPEG", "PNG", "GIF", "WEBP", "BMP")]),
    st.lists(st.tuples(st.integers(0, 400), st.binary(max_size=3))),
)
def test_a_damaged_header_is_read_or_refused(data: bytes, changes: list[tuple[int, bytes]]) -> None:
    damaged = bytearray(data)
    for position, change in changes:
        damaged[position : position + 1] = change
    try:
        assert read_header(bytes(damaged)).format
    except InvalidImageError:
        return


def test_pillow_agrees_on_the_attacks() -> None:
    """So that what a test of them shows is not an accident of the file."""
    jpeg = hostile.progressive_jpeg(1000, 3)
    webp = hostile.short_webp(200, 100)
    assert len(hostile.short_webp()) < 40
    for data, size in (
        (jpeg, (1000, 1000)),
        (webp, (200, 100)),
        (hostile.png(7, 5), (7, 5)),
    ):
        header = read_header(data)
        assert (header.width, header.height) == size
        assert decoded_size(data) == size


def decoded_size(data: bytes) -> tuple[int, int]:
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        return image.width, image.height
