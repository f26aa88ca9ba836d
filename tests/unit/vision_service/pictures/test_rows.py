"""A PNG's rows: all there, or refused; never black."""

from __future__ import annotations

import zlib

import numpy as np
import pytest
from PIL import Image

from protos.errors import InvalidImageError
from tests import hostile_pictures as hostile
from tests.mutated_pictures import interlaced_png
from tests.unit.vision_service.fakes import encoded, picture
from vision_service.tiling import decode

# Bits and colour type: the modes that Pillow has for them, 1, L, I;16, RGB, P, LA and RGBA.
KINDS = [(1, 0), (2, 0), (8, 0), (16, 0), (8, 2), (16, 2), (4, 3), (8, 3), (8, 4), (16, 4), (8, 6)]
SAMPLE_COUNTS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}


def png(bits: int, colour: int, row_count: int, byte: bytes = b"\x12") -> bytes:
    """Returns a PNG of 10 x 8 pixels with so many rows, whose compressed stream is whole."""
    row = b"\0" + byte * -(-10 * bits * SAMPLE_COUNTS[colour] // 8)
    palette = hostile.chunk(b"PLTE", bytes(range(96))) if colour == 3 else b""
    return hostile.png_file((10, 8), bits, colour, zlib.compress(row * row_count), before=palette)


@pytest.mark.parametrize(("bits", "colour"), KINDS)
def test_missing_rows_are_refused(bits: int, colour: int) -> None:
    whole = png(bits, colour, 8)
    assert decode(whole, "PNG", 1000).size == (10, 8)
    for row_count in (1, 4, 7):
        with pytest.raises(InvalidImageError, match="it ends before its last pixel"):
            decode(png(bits, colour, row_count), "PNG", 1000)


@pytest.mark.parametrize("byte", range(256))
def test_whatever_the_last_pixel_is_it_may_be(byte: int) -> None:
    for bits, colour in ((8, 0), (16, 0), (8, 2), (8, 6)):
        assert decode(png(bits, colour, 8, bytes([byte])), "PNG", 1000).size == (10, 8)


def test_rows_too_many_do_no_harm() -> None:
    assert decode(png(8, 0, 30), "PNG", 1000).size == (10, 8)


@pytest.mark.parametrize("size", [(44, 36), (5, 5), (2, 9), (3, 2)])
def test_interlaced_rows(size: tuple[int, int]) -> None:
    grey = picture(*size).convert("L")
    found = np.asarray(decode(interlaced_png(grey), "PNG", 10_000))
    assert np.array_equal(found[..., 0], np.asarray(grey))
    with pytest.raises(InvalidImageError, match="it ends before its last pixel"):
        decode(interlaced_png(grey, missing_row_count=1), "PNG", 10_000)


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGB", "RGBA", "I;16"])
def test_pixels_are_as_pillow_has_them(mode: str) -> None:
    image = picture(40, 30).convert("L" if mode == "I;16" else mode)
    stored = image
    if mode == "I;16":
        stored = Image.fromarray(np.asarray(image).astype(np.uint16) * 256)
    found = decode(encoded(stored, "PNG"), "PNG", 2000)
    assert np.array_equal(np.asarray(found), np.asarray(image.convert("RGB")))
