"""Tiling: the reference's grids and pixels, the formats, and one test a refusal."""

from __future__ import annotations

import struct
import zlib
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

from protos.errors import ImageTooLargeError, InvalidImageError
from tests.mutated_pictures import mutated, originals
from tests.tiled_files import tile_file
from tests.unit.vision_service.fakes import encoded, picture
from tests.unit.vision_service.reference import reference_tiles
from vision_service.decoding.headers import read_header
from vision_service.decoding.metadata import without_metadata
from vision_service.pictures.formats import image_format
from vision_service.tiling import (
    RELEASED_POLICY,
    TiledImage,
    TilePolicy,
    choose_grid,
    decode,
    upright_size,
)

TILE_SIZE = 28
FRAME = picture(64, 48, seed=1)
PIXEL_LIMIT = 1_000_000


def tile(
    data: bytes,
    max_tile_count: int = 12,
    max_pixel_count: int = PIXEL_LIMIT,
    policy: TilePolicy = RELEASED_POLICY,
) -> TiledImage:
    return tile_file(
        data,
        tile_size=TILE_SIZE,
        max_tile_count=max_tile_count,
        max_pixel_count=max_pixel_count,
        policy=policy,
    )


def decoded(data: bytes) -> Image.Image:
    return decode(data, image_format(data), PIXEL_LIMIT)


POLICIES = st.builds(TilePolicy, st.booleans(), st.integers(1, 12), st.booleans())


@settings(max_examples=60, deadline=None)
@given(
    st.integers(2, 300), st.integers(2, 300), st.integers(1, 24), POLICIES | st.just(TilePolicy())
)
def test_tiles_are_the_reference_tiles(
    width: int, height: int, cap: int, policy: TilePolicy
) -> None:
    image = picture(width, height)
    expected = reference_tiles(image, cap, TILE_SIZE, policy)
    tiled = tile(encoded(image), max_tile_count=cap, policy=policy)
    assert tiled.tiles.shape == (len(expected), 3, TILE_SIZE, TILE_SIZE)
    assert tiled.grid.tile_count == len(expected)
    assert np.array_equal(
        tiled.tiles, np.stack([np.asarray(t).transpose(2, 0, 1) for t in expected])
    )


@pytest.mark.parametrize(
    ("width", "height", "columns", "rows"),
    [(633, 633, 1, 1), (634, 634, 2, 2), (951, 951, 3, 3), (1920, 1080, 4, 2)],
)
def test_of_two_equally_close_grids_the_area_decides(
    width: int, height: int, columns: int, rows: int
) -> None:
    grid = choose_grid(width, height, 12, 448)
    assert (grid.column_count, grid.row_count) == (columns, rows)


@pytest.mark.parametrize(
    ("width", "height", "columns", "rows"),
    [
        # 2.5 is as far from 1 as from 4: the area decides, and the reference's order, which has the
        # grid of 2 x 2 behind that of 4 x 1.
        (500, 200, 2, 2),
        (40, 16, 4, 1),
        (16, 40, 1, 4),
        (200, 200, 2, 2),
    ],
)
def test_without_small_grids_the_reference_order_decides(
    width: int, height: int, columns: int, rows: int
) -> None:
    grid = choose_grid(width, height, 4, 28, TilePolicy(min_tile_count=4))
    assert (grid.column_count, grid.row_count, grid.tile_count) == (columns, rows, 5)


@pytest.mark.parametrize(
    ("policy", "cap", "columns", "rows", "tile_count"),
    [
        (TilePolicy(), 12, 3, 2, 7),
        (TilePolicy(has_thumbnail=False), 12, 3, 2, 6),
        (TilePolicy(has_thumbnail=False), 1, 1, 1, 1),
        (TilePolicy(is_dynamic=False), 12, 1, 1, 1),
        (TilePolicy(is_dynamic=False, min_tile_count=2), 12, 1, 1, 1),
        (TilePolicy(min_tile_count=7), 12, 4, 3, 13),
        (TilePolicy(min_tile_count=2), 1, 1, 1, 1),  # no grid is left: the reference takes 1 x 1
    ],
)
def test_the_policy_holds(
    policy: TilePolicy, cap: int, columns: int, rows: int, tile_count: int
) -> None:
    tiled = tile(encoded(picture(90, 60)), max_tile_count=cap, policy=policy)
    assert (tiled.grid.column_count, tiled.grid.row_count) == (columns, rows)
    assert len(tiled.tiles) == tiled.grid.tile_count == tile_count


def test_a_cap_of_one_gives_one_tile_without_thumbnail() -> None:
    tiled = tile(encoded(picture(300, 40)), max_tile_count=1)
    assert (tiled.grid.cell_count, tiled.grid.tile_count, len(tiled.tiles)) == (1, 1, 1)


@pytest.mark.parametrize("name", ["PNG", "BMP", "GIF", "WEBP", "JPEG", "MPO", "TIFF", "AVIF"])
def test_every_format_is_decoded(name: str) -> None:
    image = picture(60, 40)
    options = {"lossless": True} if name == "WEBP" else {}
    found = decoded(encoded(image, name, **options))
    assert (found.mode, found.size) == ("RGB", (60, 40))
    difference = np.abs(np.asarray(found).astype(int) - np.asarray(image).astype(int))
    assert difference.mean() < (1 if name in ("PNG", "BMP", "WEBP", "TIFF") else 20)


@pytest.mark.parametrize("name", ["GIF", "PNG", "WEBP", "AVIF", "TIFF", "MPO"])
def test_of_several_pictures_the_first_one_counts(name: str) -> None:
    red, blue = (Image.new("RGB", (20, 20), colour) for colour in ("red", "blue"))
    data = encoded(red, name, save_all=True, append_images=[blue])
    red_value, green_value, blue_value = np.asarray(decoded(data))[10, 10]
    assert (red_value > 200, green_value < 50, blue_value < 50) == (True, True, True)


UNDONE = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@pytest.mark.parametrize("orientation", UNDONE)
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("PNG", {}),
        ("WEBP", {"lossless": True}),
        ("JPEG", {"quality": 100, "subsampling": 0}),
        ("MPO", {"quality": 100, "subsampling": 0, "save_all": True, "append_images": [FRAME]}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("AVIF", {"quality": 100, "subsampling": "4:4:4"}),
        ("HEIF", {"quality": -1, "chroma": 444}),
    ],
)
def test_a_picture_is_brought_upright_once(
    name: str, options: dict[str, Any], orientation: int
) -> None:
    if name == "HEIF":
        pytest.importorskip("pillow_heif", reason="needs the extra heif").register_heif_opener()
    upright = picture(64, 48)
    undo = UNDONE[orientation]
    stored = upright if undo is None else upright.transpose(undo)
    exif = Image.Exif()
    exif[0x0112] = orientation
    if name == "HEIF":  # which turns itself as the file says, not as EXIF says
        stored.info["exif"] = exif.tobytes()
    else:
        options = {**options, "exif": exif}
    data = encoded(stored, name, **options)
    found = np.asarray(decoded(data)).astype(int)
    assert found.shape == (48, 64, 3)
    assert upright_size(data, image_format(data), PIXEL_LIMIT) == (64, 48)
    assert np.abs(found - np.asarray(upright)).mean() < 4


@pytest.mark.filterwarnings("ignore")
def test_the_size_before_decoding_is_that_of_the_decoded_picture() -> None:
    """Of files of every kind, whole and damaged ones that are decoded nevertheless."""
    count = 0
    for data in [*originals().values(), *(mutated(number)[1] for number in range(1500))]:
        with suppress(InvalidImageError, ImageTooLargeError):
            format_ = read_header(data).format
            bare = without_metadata(data, format_)
            size = decode(bare, format_, PIXEL_LIMIT).size
            assert upright_size(bare, format_, PIXEL_LIMIT) == size
            count += 1
    assert count > len(originals()) + 300


@pytest.mark.filterwarnings("ignore")
def test_what_has_no_size_is_refused_as_it_would_be_for_its_pixels() -> None:
    count = 0
    for number in range(1000):
        data = mutated(number)[1]
        with suppress(InvalidImageError, ImageTooLargeError):
            format_ = read_header(data).format
            try:
                upright_size(data, format_, PIXEL_LIMIT)
            except (InvalidImageError, ImageTooLargeError) as error:
                count += 1
                with pytest.raises(type(error)):
                    decode(data, format_, PIXEL_LIMIT)
    assert count > 50


def test_no_pixel_is_decoded_for_a_size(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(ImageFile.ImageFile, "load", load)
    for data in originals().values():
        format_ = image_format(data)
        assert upright_size(data, format_, PIXEL_LIMIT)
        with pytest.raises(AssertionError):
            decode(data, format_, PIXEL_LIMIT)


def test_damaged_exif_is_ignored() -> None:
    image = picture(40, 24)
    data = encoded(image, exif=b"Exif\x00\x00XX*\x00\x08\x00\x00\x00")
    assert np.array_equal(np.asarray(decoded(data)), np.asarray(image))


@pytest.mark.parametrize("name", ["PNG", "BMP", "GIF", "WEBP", "JPEG", "TIFF", "AVIF"])
def test_a_truncated_file_is_refused(name: str) -> None:
    data = encoded(picture(120, 90), name)
    with pytest.raises(InvalidImageError, match="damaged or cut short"):
        tile(data[: len(data) // 2])


@pytest.mark.parametrize(
    ("width", "height"), [(1, 1), (1, 50), (50, 1), (2, 60), (1, 5000), (65_535, 1)]
)
def test_one_pixel_and_strips_are_the_reference_tiles(width: int, height: int) -> None:
    image = picture(width, height)
    expected = reference_tiles(image, 12, TILE_SIZE)
    tiles = tile(encoded(image)).tiles
    assert np.array_equal(tiles, np.stack([np.asarray(t).transpose(2, 0, 1) for t in expected]))


@pytest.mark.parametrize(("width", "height"), [(65_536, 1), (1, 70_000)])
def test_an_edge_over_the_limit_is_refused(width: int, height: int) -> None:
    with pytest.raises(ImageTooLargeError, match="the limit of an edge is 65535"):
        tile(png_header(width, height))


def png_header(width: int, height: int) -> bytes:
    """Returns a PNG that ends before its pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", 0)


def test_too_many_pixels_are_refused_before_they_are_decoded() -> None:
    with pytest.raises(ImageTooLargeError, match=r"1001x1000 = 1001000 pixels.* 1000000") as caught:
        tile(png_header(1001, 1000))
    assert caught.value.field == "image"


def test_exactly_the_limit_is_decoded() -> None:
    with pytest.raises(InvalidImageError, match="damaged"):
        tile(png_header(1000, 1000))


def test_what_pillow_takes_for_a_bomb_is_refused() -> None:
    with pytest.raises(ImageTooLargeError, match="400000000 pixels; the limit is 1000000"):
        tile(png_header(20_000, 20_000))


def test_a_gif_frame_beyond_its_screen_is_refused() -> None:
    data = bytearray(encoded(picture(20, 20), "GIF"))
    frame = data.index(b",\x00\x00\x00\x00")
    data[frame + 5 : frame + 9] = struct.pack("<HH", 65_535, 65_535)
    with pytest.raises(ImageTooLargeError):
        tile(bytes(data))


FILES = [encoded(picture(24, 20), name) for name in ("PNG", "BMP", "GIF", "WEBP", "JPEG", "MPO")]


# As in the service, where Pillow's warnings are off; pytest has its own way with them.
@settings(max_examples=300, deadline=None)
@given(st.sampled_from(FILES), st.lists(st.tuples(st.integers(0, 400), st.binary(max_size=3))))
def test_a_damaged_file_is_decoded_or_refused(
    data: bytes, changes: list[tuple[int, bytes]]
) -> None:
    damaged = bytearray(data)
    for position, change in changes:
        damaged[position : position + 1] = change
    try:
        tiled = tile(bytes(damaged))
    except (InvalidImageError, ImageTooLargeError):
        return
    assert len(tiled.tiles) == tiled.grid.tile_count
