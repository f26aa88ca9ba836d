"""The structure: what is honest passes, and each count has its limit."""

from __future__ import annotations

from typing import Any

import pytest

from protos.errors import ImageTooLargeError, InvalidImageError
from tests import hostile_pictures as hostile
from tests.unit.vision_service.fakes import encoded, picture
from vision_service.decoding.headers import Header
from vision_service.decoding.structure import check_runs, check_structure

PICTURE = picture(300, 200)


@pytest.mark.parametrize(
    ("image_format", "options"),
    [
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("PNG", {}),
        ("WEBP", {}),
        ("WEBP", {"save_all": True, "append_images": [PICTURE.rotate(180)]}),
    ],
)
def test_honest_files_pass(image_format: str, options: dict[str, Any]) -> None:
    check_structure(encoded(PICTURE, image_format, **options), image_format)


def test_what_follows_the_picture_is_not_counted() -> None:
    check_structure(encoded(PICTURE, "JPEG") + b"\xff\xda\0\2" * 100, "JPEG")


@pytest.mark.parametrize(
    ("data", "image_format", "complaint"),
    [
        (hostile.progressive_jpeg(64, 31), "JPEG", "has over 32 scans; the limit is 32"),
        (
            hostile.filled_jpeg(5000),
            "JPEG",
            "a run of over 4096 fill bytes; the limit is 4096",
        ),
        (
            encoded(PICTURE, "JPEG")[:-2] + hostile.segment(0xFE, b"") * 5000,
            "JPEG",
            "over 4096 segments",
        ),
        (hostile.chunky_png(300_000), "PNG", "over 16384 chunks; the limit is 16384"),
        (encoded(PICTURE, "WEBP") + b"XXXX\0\0\0\0" * 20_000, "WEBP", "over 16384 chunks"),
    ],
)
def test_too_many_parts_are_refused(data: bytes, image_format: str, complaint: str) -> None:
    with pytest.raises(InvalidImageError, match=complaint):
        check_structure(data, image_format)


def test_scans_up_to_the_limit_pass() -> None:
    check_structure(hostile.progressive_jpeg(64, 30), "JPEG")


@pytest.mark.parametrize(("edge", "byte_count"), [(100, 5_000_000), (4000, 1000)])
def test_runs_have_limits_of_their_own(edge: int, byte_count: int) -> None:
    with pytest.raises(ImageTooLargeError, match=f"of {byte_count} bytes and {edge**2} pixels"):
        check_runs(Header("BMP", edge, edge, is_run_length_coded=True), byte_count)
    check_runs(Header("BMP", edge, edge), byte_count)
