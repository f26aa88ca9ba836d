"""Chunks: walked over as the file says, and no further."""

from __future__ import annotations

import pytest

from protos.errors import InvalidImageError
from tests import hostile_pictures as hostile
from tests.unit.vision_service.fakes import encoded, picture
from vision_service.pictures.chunks import png_chunks, riff_chunks


def test_too_many_chunks_are_refused() -> None:
    with pytest.raises(InvalidImageError, match="over 65536 chunks; the limit is 65536"):
        list(png_chunks(hostile.chunky_png(1_000_000)))
    webp = encoded(picture(30, 20), "WEBP") + b"XXXX\0\0\0\0" * 70_000
    with pytest.raises(InvalidImageError, match="over 65536 chunks"):
        list(riff_chunks(webp, len(webp)))


def test_chunks_end_where_the_file_says() -> None:
    data = hostile.png(2, 2, before=hostile.chunk(b"teSt", b"abc")) + hostile.chunk(b"teSt")
    assert [kind for kind, _, _ in png_chunks(data)] == [b"IHDR", b"teSt", b"IDAT", b"IEND"]
    kinds = [kind for kind, _, end in png_chunks(data[:50]) if end <= 50]
    assert kinds == [b"IHDR", b"teSt"][: len(kinds)]
