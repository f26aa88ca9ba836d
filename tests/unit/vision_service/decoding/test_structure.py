"""The structure: what is honest passes, and each count has its limit."""

from __future__ import annotations

from typing import Any

import pytest

from protos.errors import ImageTooLargeError, InvalidImageError
from tests import hostile_pictures as hostile
from tests.unit.vision_service.fakes import encoded, picture
from vision_service.decoding.headers import Header
from vision_service.decoding.structure import (
    check_runs,
    check_scans,
)

PICTURE = picture(300, 200)


@pytest.mark.parametrize("options", [{}, {"progressive": True}])
def test_honest_files_pass(options: dict[str, Any]) -> None:
    check_scans(encoded(PICTURE, "JPEG", **options))


def test_what_follows_the_picture_is_not_counted() -> None:
    check_scans(encoded(PICTURE, "JPEG") + b"\xff\xda\0\2" * 100 + b"\xff" * 5000)


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (hostile.progressive_jpeg(64, 31), "has over 32 scans; the limit is 32"),
        (hostile.filled_jpeg(5000), "a run of over 4096 fill bytes; the limit is 4096"),
        (
            encoded(PICTURE, "JPEG")[:-2] + hostile.segment(0xFE, b"") * 20_000,
            "over 16384 segments",
        ),
    ],
)
def test_too_many_parts_are_refused(data: bytes, complaint: str) -> None:
    with pytest.raises(InvalidImageError, match=complaint):
        check_scans(data)


def test_scans_up_to_the_limit_pass() -> None:
    check_scans(hostile.progressive_jpeg(64, 30))


@pytest.mark.parametrize(("edge", "byte_count"), [(100, 5_000_000), (4000, 1000)])
def test_runs_have_limits_of_their_own(edge: int, byte_count: int) -> None:
    with pytest.raises(ImageTooLargeError, match=f"of {byte_count} bytes and {edge**2} pixels"):
        check_runs(Header("BMP", edge, edge, is_run_length_coded=True), byte_count)
    check_runs(Header("BMP", edge, edge), byte_count)
