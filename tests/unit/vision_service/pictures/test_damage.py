"""Damaged files: what their senders are told, in no decoder's words."""

from __future__ import annotations

import struct

import pytest

from protos.errors import InvalidImageError
from tests.unit.vision_service.fakes import encoded, picture
from vision_service.pictures.damage import damaged
from vision_service.tiling import decode

LARGE = picture(120, 90)


@pytest.mark.parametrize(
    ("complaint", "sentence"),
    [
        (OSError("image file is truncated (3 bytes not processed)"), "ends before its last pixel"),
        (OSError("broken data stream when reading image file"), "compressed pixels are damaged"),
        (struct.error("unpack_from requires a buffer of at least 4 bytes"), "or cut short$"),
        (TypeError("'NoneType' object is not subscriptable"), "or cut short$"),
        (KeyError(7), "or cut short$"),
    ],
)
def test_a_decoders_words_are_not_passed_on(complaint: Exception, sentence: str) -> None:
    with pytest.raises(InvalidImageError, match=sentence) as caught:
        raise damaged(complaint)
    assert caught.value.field == "image"
    assert str(complaint) not in caught.value.message


@pytest.mark.parametrize(
    ("image_format", "sentence"),
    [
        ("JPEG", "ends before its last pixel"),
        ("PNG", "ends before its last pixel"),
        ("WEBP", "fit"),
    ],
)
def test_a_file_that_is_cut_short(image_format: str, sentence: str) -> None:
    data = encoded(LARGE, image_format)
    with pytest.raises(InvalidImageError, match=f"damaged or cut short: .*{sentence}"):
        decode(data[: 2 * len(data) // 3], image_format, 10**6)
