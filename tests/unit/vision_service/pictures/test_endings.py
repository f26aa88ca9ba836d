"""Files without their end: answered when all pixels are there, refused when the last one is not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from protos.errors import InvalidImageError
from tests.unit.vision_service.fakes import encoded, picture
from vision_service.pictures.formats import image_format
from vision_service.tiling import decode

JPEGS: list[dict[str, Any]] = [
    {},
    {"quality": 100, "subsampling": 0},
    {"quality": 10},
    {"optimize": True},
    {"progressive": True},
    {"progressive": True, "quality": 100, "subsampling": 0},
    {"restart_marker_blocks": 2},
]


def pixels(data: bytes) -> Any:
    return np.asarray(decode(data, image_format(data), 1_000_000))


@pytest.mark.parametrize("options", JPEGS)
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_jpeg_without_its_end_marker_is_answered(mode: str, options: dict[str, Any]) -> None:
    data = encoded(picture(61, 43).convert(mode), "JPEG", **options)
    for cut in (1, 2):
        assert np.array_equal(pixels(data[:-cut]), pixels(data))


@pytest.mark.parametrize("options", JPEGS)
@pytest.mark.parametrize("size", [(61, 43), (16, 16), (8, 200)])
def test_a_jpeg_that_lacks_a_bit_is_refused_or_the_same(
    size: tuple[int, int], options: dict[str, Any]
) -> None:
    """The last bits of a scan may be padding, so that the file without them is still whole."""
    data = encoded(picture(*size), "JPEG", **options)
    whole, refused = pixels(data), 0
    for cut in (3, 4, 5, 6, 8, 12, 40):
        try:
            assert np.array_equal(pixels(data[:-cut]), whole)
        except InvalidImageError:
            refused += 1
    assert refused >= 6


@pytest.mark.parametrize("block_count", [1, 2, 5])
def test_a_jpeg_that_lacks_its_last_restarts_is_refused(block_count: int) -> None:
    data = encoded(picture(61, 43), "JPEG", restart_marker_blocks=block_count)
    restarts = [place for place in range(len(data) - 1) if data[place] == 0xFF]
    ends = [place for place in restarts if 0xD0 <= data[place + 1] <= 0xD7]
    for end in ends[-4:]:
        for cut in (end - 3, end, end + 1, end + 2, end + 3):
            with pytest.raises(InvalidImageError, match="ends before its last pixel"):
                pixels(data[:cut])


def test_a_progressive_jpeg_that_lacks_its_last_scan_is_refused() -> None:
    data = encoded(picture(61, 43), "JPEG", progressive=True)
    with pytest.raises(InvalidImageError, match="ends before its last pixel"):
        pixels(data[: data.rindex(b"\xff\xda")])


@pytest.mark.parametrize("options", [{}, {"lossless": True}])
def test_a_webp_of_a_wrong_length_is_answered(options: dict[str, Any]) -> None:
    data = encoded(picture(61, 43), "WEBP", **options)
    expected = pixels(data)
    for length in (0, len(data) - 10, len(data) - 7, 10**6, 2**32 - 2):
        wrong = data[:4] + length.to_bytes(4, "little") + data[8:]
        assert np.array_equal(pixels(wrong), expected)
    # An odd chunk without its padding is whole; what lacks more is not.
    size = int.from_bytes(data[16:20], "little")
    assert 20 + size + size % 2 == len(data)
    assert np.array_equal(pixels(data[: 20 + size]), expected)
    with pytest.raises(InvalidImageError, match="damaged or cut short"):
        pixels(data[: 19 + size])


@pytest.mark.parametrize(
    ("name", "cuts"),
    [
        ("PNG", [4, 12, 16]),  # IEND, and the checksum before it
        ("GIF", [1, 2]),  # the trailer, and the end of the blocks
        ("BMP", [1]),  # the padding of the last row
    ],
)
def test_other_files_without_their_end_are_answered(name: str, cuts: list[int]) -> None:
    data = encoded(picture(61, 43), name)
    for cut in cuts:
        assert np.array_equal(pixels(data[:-cut]), pixels(data))


def test_a_bmp_of_a_wrong_length_is_answered() -> None:
    data = encoded(picture(61, 43), "BMP")
    for place in (2, 34):  # of the file, and of its pixels
        for length in (0, 2**32 - 1):
            wrong = data[:place] + length.to_bytes(4, "little") + data[place + 4 :]
            assert np.array_equal(pixels(wrong), pixels(data))
