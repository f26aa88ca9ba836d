"""Bands: the bits of one resize, whatever the threads, the bands' sizes and Pillow's order."""

from __future__ import annotations

import threading
from collections.abc import Callable
from unittest.mock import patch

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from protos.process.threads import started_pool
from vision_service import bands
from vision_service.bands import Order, resize_into
from vision_service.threads import Threads

HELPER_COUNT = 3
POOL = started_pool(HELPER_COUNT)
Resize = Callable[[Image.Image, tuple[int, int]], Image.Image]


def noise(width: int, height: int) -> Image.Image:
    values = np.random.default_rng(width * height).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(values)


def place(row_count: int, column_count: int, tile_size: int) -> npt.NDArray[np.uint8]:
    return np.zeros((row_count, column_count, 3, tile_size, tile_size), np.uint8)


def resized(image: Image.Image, like: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Returns the tiles that one call of Pillow's resize gives."""
    rows, columns, _, tile_size, _ = like.shape
    whole = image.resize((columns * tile_size, rows * tile_size), Image.Resampling.BICUBIC)
    cells = np.array(whole, np.uint8).reshape(rows, tile_size, columns, tile_size, 3)
    tiles: npt.NDArray[np.uint8] = cells.transpose(0, 2, 4, 1, 3)
    return tiles


# The second ones are so narrow that Pillow has an order of its own for them.
SIZES = st.tuples(st.integers(1, 400), st.integers(1, 400)) | st.tuples(
    st.integers(1, 4), st.integers(90, 900)
)


@settings(max_examples=300, deadline=None)
@given(
    size=SIZES,
    grid=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    tile_size=st.integers(1, 30),
    thread_count=st.integers(1, HELPER_COUNT + 1),
    max_pixel_count=st.integers(1, 40_000),
    least_pixel_count=st.integers(1, 20_000),
)
# Each pass alone, neither, and the sizes of strips.
@example((56, 33), (2, 2), 28, 4, 200, 100)
@example((33, 56), (2, 2), 28, 4, 200, 100)
@example((56, 56), (2, 2), 28, 4, 200, 100)
@example((1, 4000), (5, 1), 28, 4, 50_000, 100)
@example((4000, 1), (1, 5), 28, 4, 50_000, 100)
def test_the_bits_are_those_of_one_resize(
    size: tuple[int, int],
    grid: tuple[int, int],
    tile_size: int,
    thread_count: int,
    max_pixel_count: int,
    least_pixel_count: int,
) -> None:
    image, places = noise(*size), [place(*grid, tile_size), place(1, 1, tile_size)]
    with (
        patch.object(bands, "MAX_BAND_PIXEL_COUNT", max_pixel_count),
        patch.object(bands, "LEAST_BAND_PIXEL_COUNT", least_pixel_count),
    ):
        resize_into(places, image, Threads(thread_count, POOL))
    for found in places:
        assert np.array_equal(found, resized(image, found))


@pytest.mark.parametrize("thread_count", [1, 2, 4])
@pytest.mark.parametrize(
    ("width", "height"),
    [
        (1000, 747),
        (250, 187),
        pytest.param(3001, 2251, marks=pytest.mark.slow),
        pytest.param(1080, 4000, marks=pytest.mark.slow),
    ],
)
def test_the_bits_are_those_of_one_resize_at_full_size(
    width: int, height: int, thread_count: int
) -> None:
    image, found = noise(width, height), place(3, 4, 448)
    resize_into([found], image, Threads(thread_count, POOL))
    assert np.array_equal(found, resized(image, found))


@pytest.fixture
def threads_of_resizes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Returns a list that each resize adds its thread to, once as many as there are have come."""
    idents: list[int] = []
    together = threading.Barrier(HELPER_COUNT + 1)
    original: Resize = bands._resized

    def noted(image: Image.Image, size: tuple[int, int]) -> Image.Image:
        if threading.get_ident() not in idents:
            together.wait(60)
            idents.append(threading.get_ident())
        return original(image, size)

    monkeypatch.setattr(bands, "_resized", noted)
    return idents


def test_all_threads_resize_at_a_time(threads_of_resizes: list[int]) -> None:
    resize_into([place(2, 2, 448)], noise(600, 500), Threads(HELPER_COUNT + 1, POOL))
    assert len(threads_of_resizes) == HELPER_COUNT + 1


WRONG_ORDERS: dict[str, Order] = {
    "any loss of height": lambda old, new: old[1] > new[1],
    "more loss of height": lambda old, new: old[1] - new[1] > max(0, old[0] - new[0]),
    "three times the loss": lambda old, new: old[1] - new[1] > 3 * max(0, old[0] - new[0]),
    "twice the loss or as much": lambda old, new: old[1] - new[1] >= 2 * max(0, old[0] - new[0]),
    "narrow": lambda old, new: old[1] >= max(100 * old[0], new[1] + 1),
    "always": lambda _old, _new: True,
}


@pytest.mark.parametrize("name", WRONG_ORDERS)
def test_an_order_that_is_not_pillows_is_told(name: str) -> None:
    assert bands._order() in bands.ORDERS
    with patch.object(bands, "ORDERS", (WRONG_ORDERS[name],)):
        assert bands._order.__wrapped__() is None


def test_in_an_unknown_order_one_thread_resizes(
    monkeypatch: pytest.MonkeyPatch, threads_of_resizes: list[int]
) -> None:
    monkeypatch.setattr(bands, "_order", lambda: None)
    threads_of_resizes.append(threading.get_ident())
    image, found = noise(600, 1800), place(2, 2, 28)
    resize_into([found], image, Threads(HELPER_COUNT + 1, POOL))
    assert threads_of_resizes == [threading.get_ident()]
    monkeypatch.undo()
    assert np.array_equal(found, resized(image, found))
