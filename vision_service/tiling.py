"""Tiling: an encoded image file -> the uint8 tiles that the model sees; pure Pillow and numpy.

The grid, the resize and the order of the tiles are those of the reference's `dynamic_preprocess`
(OpenGVLab/InternVL, internvl_chat/internvl/train/dataset.py), bit for bit.
"""

from __future__ import annotations

import functools
import math
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image

from protos.errors import ImageTooLargeError, InvalidImageError
from vision_service.bands import resize_into
from vision_service.pictures.colours import to_rgb
from vision_service.pictures.damage import damaged
from vision_service.pictures.endings import corrected_webp, lengthened_jpeg
from vision_service.pictures.opening import load_image, open_image
from vision_service.pictures.transparency import Transparency
from vision_service.threads import ALONE, Threads

MIN_EDGE = 1
# No camera makes more. Resizing takes memory for each row. A strip may be as narrow as one pixel:
# the reference stretches it to its grid, and so do we.
MAX_EDGE = 65_535
# What Pillow's decoders raise on damaged files: the first three were seen with mutated files, the
# others are those that Pillow itself (ImageFile, PngImagePlugin) catches around a decoder, and the
# last one is what the libraries of AVIF and HEIC have for all that went wrong.
DECODE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    struct.error,
    zlib.error,
    RuntimeError,
)
# EXIF orientation (TIFF 6.0, tag 274) -> what brings the picture upright; 1 is upright.
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SIDEWAYS = range(5, 9)
# Pillow warns of what it tolerates: odd metadata, and pixel counts below its own limit.
warnings.filterwarnings("ignore", module=r"PIL\.")

UInt8Array = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class TilePolicy:
    """What a checkpoint's config.json says about cutting; by default as all released ones do.

    Attributes:
        is_dynamic: `dynamic_image_size`; if not, every image is one tile, whatever the cap.
        min_tile_count: `min_dynamic_patch`, the fewest tiles of a grid; an image is still one tile
            where the cap is below it.
        has_thumbnail: `use_thumbnail`, whether one follows the tiles of a grid of several.
    """

    is_dynamic: bool = True
    min_tile_count: int = 1
    has_thumbnail: bool = True


RELEASED_POLICY = TilePolicy()


@dataclass(frozen=True)
class Grid:
    """How an image is cut: columns x rows, each 1 or more, and whether a thumbnail may follow."""

    column_count: int
    row_count: int
    has_thumbnail: bool = True

    @property
    def cell_count(self) -> int:
        """Tiles without the thumbnail."""
        return self.column_count * self.row_count

    @property
    def tile_count(self) -> int:
        """Tiles with the thumbnail, which an image of one tile does not have."""
        return self.cell_count + (self.has_thumbnail and self.cell_count > 1)


@dataclass(frozen=True)
class TiledImage:
    """An image as the model sees it.

    Attributes:
        tiles: [grid.tile_count, 3, tile_size, tile_size] RGB, row by row, the thumbnail last.
        grid: how the image was cut.
        width: of the decoded image, upright, in pixels.
        height: likewise.
    """

    tiles: UInt8Array
    grid: Grid
    width: int
    height: int


def decode(
    data: bytes, format_: str, max_pixel_count: int, transparency: Transparency = "white"
) -> Image.Image:
    """Returns the file's first picture, upright (EXIF and what else its format has), as RGB.

    Args:
        data: the encoded file.
        format_: as `formats.image_format` tells it.
        max_pixel_count: most pixels of the image.
        transparency: what transparent pixels become; as `colours.to_rgb`.

    Raises:
        InvalidImageError: the file is damaged, or its pixels are no colours; or as `check_size`.
        ImageTooLargeError: as `check_size`.
    """
    with _refusals(max_pixel_count):
        image = _loaded(data, format_, max_pixel_count)
        orientation = _orientation(image)
        rgb = to_rgb(image, transparency)
        del image  # so that at most two copies of the pixels are in memory
        return _upright(rgb, orientation)


def upright_size(data: bytes, format_: str, max_pixel_count: int) -> tuple[int, int]:
    """Returns width and height of what `decode` would return; decodes no pixel.

    Args:
        data: the encoded file; EXIF behind a PNG's pixels does not count.
        format_: as of `decode`.
        max_pixel_count: most pixels of the image.

    Raises:
        InvalidImageError: the file is damaged before its pixels; or as `check_size`.
        ImageTooLargeError: as `check_size`.
    """
    with _refusals(max_pixel_count):
        image = _opened(data, format_)
        check_size(image.width, image.height, max_pixel_count)
        # A TIFF's is that of the upright picture, before its pixels are.
        is_turned = format_ != "TIFF" and _orientation(image) in SIDEWAYS
        return (image.height, image.width) if is_turned else (image.width, image.height)


def choose_grid(
    width: int,
    height: int,
    max_tile_count: int,
    tile_size: int,
    policy: TilePolicy = RELEASED_POLICY,
) -> Grid:
    """Returns the grid whose aspect ratio is closest to the image's.

    Of two that are equally close, the later one wins if the image has more than half as many pixels
    as that grid would show. Where the policy and the cap leave no grid, it is one tile.
    """
    best, best_difference = (1, 1), float("inf")
    for columns, rows in _grids(policy, max_tile_count):
        difference = abs(width / height - columns / rows)
        covers = width * height > 0.5 * tile_size * tile_size * columns * rows
        if difference < best_difference or (difference == best_difference and covers):
            best, best_difference = (columns, rows), difference
    return Grid(*best, policy.has_thumbnail)


def cut(image: Image.Image, grid: Grid, tile_size: int, threads: Threads = ALONE) -> UInt8Array:
    """Returns the tiles of an RGB image, [grid.tile_count, 3, tile_size, tile_size].

    The image is resized to the whole grid (its aspect ratio is not kept), then cut.
    """
    tiles = np.empty((grid.tile_count, 3, tile_size, tile_size), dtype=np.uint8)
    cut_into(tiles, image, grid, threads)
    return tiles


def cut_into(tiles: UInt8Array, image: Image.Image, grid: Grid, threads: Threads = ALONE) -> None:
    """Fills the tiles, [grid.tile_count, 3, tile_size, tile_size], as `cut`."""
    shape = tiles.shape[1:]
    cells, rest = tiles[: grid.cell_count], tiles[grid.cell_count :]
    places = [cells.reshape(grid.row_count, grid.column_count, *shape)]
    places += [thumbnail.reshape(1, 1, *shape) for thumbnail in rest]
    resize_into(places, image, threads)


def check_size(width: int, height: int, max_pixel_count: int) -> None:
    """Refuses what cannot be tiled, or what is too large.

    Raises:
        InvalidImageError: an edge below MIN_EDGE.
        ImageTooLargeError: over max_pixel_count pixels, or an edge over MAX_EDGE.
    """
    shortest, longest = sorted((width, height))
    if shortest < MIN_EDGE:
        raise InvalidImageError(
            f"the image is {width}x{height} pixels; each edge must be {MIN_EDGE} or more",
            field="image",
        )
    if width * height > max_pixel_count:
        raise ImageTooLargeError(
            f"the image has {width}x{height} = {width * height} pixels; "
            f"the limit is {max_pixel_count}",
            field="image",
        )
    if longest > MAX_EDGE:
        raise ImageTooLargeError(
            f"the image is {width}x{height} pixels; the limit of an edge is {MAX_EDGE}",
            field="image",
        )


@functools.lru_cache
def _grids(policy: TilePolicy, max_tile_count: int) -> tuple[tuple[int, int], ...]:
    """Returns (columns, rows) of all grids, those with fewer cells first.

    Of grids with equally many cells two may be equally close to an image, if small grids are left
    out: then their order decides. In the reference it is the order in which a set of pairs, filled
    as here, is gone through.
    """
    if not policy.is_dynamic:
        return ((1, 1),)
    least = policy.min_tile_count
    grids = {
        (columns, rows)
        for edge in range(least, max_tile_count + 1)
        for columns in range(1, edge + 1)
        for rows in range(1, edge + 1)
        if least <= columns * rows <= max_tile_count
    }
    return tuple(sorted(grids, key=math.prod))


@contextmanager
def _refusals(max_pixel_count: int) -> Iterator[None]:
    """Turns what Pillow raises of a file into what a client is told."""
    try:
        yield
    except Image.DecompressionBombError as error:
        raise ImageTooLargeError(
            f"the image has far more pixels than the limit of {max_pixel_count}", field="image"
        ) from error
    except DECODE_ERRORS as error:
        raise damaged(error) from error


def _opened(data: bytes, format_: str) -> Image.Image:
    """Returns the picture, not yet decoded; of a file whose length is wrong, too."""
    try:
        return open_image(data, format_)
    except OSError:
        if format_ != "WEBP":
            raise
    return open_image(corrected_webp(data), format_)


def _loaded(data: bytes, format_: str, max_pixel_count: int) -> Image.Image:
    """Returns the decoded picture; of a file without its end too, if it has all pixels."""

    def load(file: bytes) -> Image.Image:
        image = open_image(file, format_)
        check_size(image.width, image.height, max_pixel_count)
        load_image(image, file)
        return image

    try:
        return load(data)
    except OSError as error:
        cause = error.with_traceback(None)  # so that the picture so far is free again
    if format_ == "WEBP":
        return load(corrected_webp(data))
    if format_ == "JPEG" and (image := lengthened_jpeg(data, load)) is not None:
        return image
    raise cause


def _orientation(image: Image.Image) -> int:
    """Returns the EXIF orientation; 1 when there is none or the metadata is damaged."""
    try:
        # A PNG's own method would decode the pixels for what may stand behind them.
        orientation: int = Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1)
    except DECODE_ERRORS:
        return 1
    return orientation


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    turn = UPRIGHT.get(orientation)
    return image if turn is None else image.transpose(turn)
