"""A picture resized by bands, on several threads, to the bits of one call of Pillow's `resize`.

That call has two passes, with eight bits between them: one makes the width, the other the height.
Within a pass no row, or no column, needs another one, so that it may have a call for each band of
them. Which pass is first is Pillow's choice, see `ORDERS`. (The `box` of `resize` would save the
copy that a band is. But with it the choice is made anew, by the box.)
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from random import Random

import numpy as np
import numpy.typing as npt
from PIL import Image

from vision_service.threads import Task, Threads

# Of a band and of what it becomes, each. A call works out its filter anew, for the whole length:
# few large bands cost least, and take the most memory.
MAX_BAND_PIXEL_COUNT = 1_048_576
# A thread is not woken for less.
LEAST_BAND_PIXEL_COUNT = 32_768

Size = tuple[int, int]
# Whether the height is made first, for an old size and a new one.
Order = Callable[[Size, Size], bool]


def resize_into(
    places: Sequence[npt.NDArray[np.uint8]], image: Image.Image, threads: Threads
) -> None:
    """Puts an RGB image into each place, resized to it.

    Args:
        places: [rows, columns, 3, tile_size, tile_size] each, the tiles of a grid.
        image: of any size.
        threads: what it may run on.
    """
    if threads.count == 1 or (is_vertical_first := _order()) is None:
        for place in places:
            _fill(place, _resized(image, _size(place)))
        return
    firsts: list[Task] = []
    seconds: list[Task] = []
    for place in places:
        between = Image.new("RGB", size_between(image.size, _size(place)))
        axis = int(is_vertical_first(image.size, _size(place)))
        firsts += _first_pass(between, image, axis, threads.count)
        seconds += _second_pass(place, between, axis, threads.count)
    threads.run(firsts)
    threads.run(seconds)


def size_between(old: Size, new: Size) -> Size:
    """Returns the size that a picture has between the passes; the larger one if none is known."""
    sizes = (new[0], old[1]), (old[0], new[1])
    order = _order()
    return sizes[order(old, new)] if order else max(sizes, key=math.prod)


def _first_pass(
    between: Image.Image, image: Image.Image, axis: int, thread_count: int
) -> Iterator[Task]:
    """Yields what fills a picture that is the image but for its width (axis 0) or height (axis 1).

    The bands lie along that axis.
    """
    along, across = max(image.size[axis], between.size[axis]), image.size[1 - axis]
    least = -(-LEAST_BAND_PIXEL_COUNT // along)
    part = min(max(1, MAX_BAND_PIXEL_COUNT // along), max(least, -(-across // thread_count)))

    def fill(start: int, stop: int) -> None:
        band = _band(image, 1 - axis, start, stop)
        resized = _resized(band, _with(band.size, axis, between.size[axis]))
        between.paste(resized, _with((0, 0), 1 - axis, start))

    return (partial(fill, *ends) for ends in _cut(across, part))


def _second_pass(
    place: npt.NDArray[np.uint8], between: Image.Image, axis: int, thread_count: int
) -> Iterator[Task]:
    """Yields what fills a place from a picture that has its width (axis 0) or height (axis 1).

    The bands lie across that axis, each within one row or column of tiles.
    """
    tile_size, size = place.shape[-1], _size(place)
    strip_count = size[axis] // tile_size
    most = max(1, size[1 - axis] * tile_size // LEAST_BAND_PIXEL_COUNT)
    part = -(-tile_size // min(most, -(-thread_count // strip_count)))

    def fill(strip: int, start: int, stop: int) -> None:
        band = _band(between, axis, strip * tile_size + start, strip * tile_size + stop)
        of_strip, of_tile = slice(strip, strip + 1), slice(start, stop)
        tiles = place[of_strip, :, :, of_tile] if axis else place[:, of_strip, ..., of_tile]
        resized = _resized(band, _with(band.size, 1 - axis, size[1 - axis]))
        rows, columns, _, height, width = tiles.shape
        # Unlike Pillow, numpy releases Python's lock while it takes the channels apart.
        cells = np.asarray(resized).reshape(rows, height, columns, width, 3)
        tiles[...] = cells.transpose(0, 2, 4, 1, 3)

    return (
        partial(fill, strip, *ends)
        for strip in range(strip_count)
        for ends in _cut(tile_size, part)
    )


def _fill(place: npt.NDArray[np.uint8], picture: Image.Image) -> None:
    row_count, column_count, _, height, width = place.shape
    # Pillow splits the channels faster than numpy transposes them.
    for channel, plane in enumerate(picture.split()):
        cells = np.asarray(plane).reshape(row_count, height, column_count, width)
        place[:, :, channel] = cells.transpose(0, 2, 1, 3)


def _size(place: npt.NDArray[np.uint8]) -> Size:
    """Returns width and height of the picture that a place holds."""
    row_count, column_count, _, height, width = place.shape
    return column_count * width, row_count * height


def _with(size: Size, axis: int, value: int) -> Size:
    return (size[0], value) if axis else (value, size[1])


def _band(image: Image.Image, axis: int, start: int, stop: int) -> Image.Image:
    """Returns the columns (axis 0) or rows (axis 1) from `start` to before `stop`."""
    corners = _with((0, 0), axis, start), _with(image.size, axis, stop)
    return image.crop((*corners[0], *corners[1]))


def _resized(image: Image.Image, size: Size) -> Image.Image:
    return image.resize(size, Image.Resampling.BICUBIC)


def _cut(length: int, most: int) -> Iterator[tuple[int, int]]:
    """Yields start and end of the parts of a length, each of `most` but the last."""
    for start in range(0, length, most):
        yield start, min(start + most, length)


def _never(_old: Size, _new: Size) -> bool:
    return False


def _is_narrow(old: Size, new: Size) -> bool:
    """Whether the height is over a hundred times the width, and becomes less."""
    return old[1] > max(100 * old[0], new[1])


def _is_shrunk_more(old: Size, new: Size) -> bool:
    """Whether the height loses more than twice the pixels that the width loses, and loses any."""
    return old[1] - new[1] > 2 * max(0, old[0] - new[0])


# Of Pillow before 12.3, of 12.3 and of 13.
ORDERS: tuple[Order, ...] = (_never, _is_narrow, _is_shrunk_more)
# Sizes that tell them from each other, and from others that are alike, old and new.
TELLING = (
    *(((20, height), (14, 8)) for height in (12, 16, 20, 21, 26)),
    *(((10, height), (14, 8)) for height in (7, 9, 10, 12)),
    *(((20, height), (20, 8)) for height in (7, 9)),
    *(((2, height), (5, 150)) for height in (149, 151, 200, 201)),
)


@functools.cache
def _order() -> Order | None:
    """Returns the order that is Pillow's, tried with small pictures; None where it is a new one."""
    return next((order for order in ORDERS if all(_is_held(order, *a) for a in TELLING)), None)


def _is_held(order: Order, old: Size, new: Size) -> bool:
    """Whether two passes in that order have the bits of one call."""
    noise = Random(0).randbytes(old[0] * old[1])  # noqa: S311 - numpy's is slow to import
    image, axis = Image.frombytes("L", old, noise), int(order(old, new))
    between = _resized(image, _with(old, axis, new[axis]))
    return _resized(between, new).tobytes() == _resized(image, new).tobytes()
