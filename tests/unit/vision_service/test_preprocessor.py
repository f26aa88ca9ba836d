"""The preprocessor: bounded, and free again after an error or a cancel."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import numpy as np
import pytest

from protos.errors import InvalidImageError, OverloadedError
from tests.unit.vision_service.fakes import encoded, picture
from vision_service import preprocessor as preprocessor_module
from vision_service.preprocessor import Preprocessor
from vision_service.tiling import Grid, TiledImage

PICTURE = encoded(picture(40, 20))


@pytest.fixture
def preprocessor() -> Iterator[Preprocessor]:
    preprocessor = Preprocessor(
        tile_size=28, max_pixel_count=10_000, worker_count=1, max_image_count=2
    )
    yield preprocessor
    preprocessor.close()


async def test_an_image_is_tiled(preprocessor: Preprocessor) -> None:
    tiled, seconds = await preprocessor.tile(PICTURE, 2)
    assert (tiled.grid, tiled.width, tiled.height) == (Grid(2, 1), 40, 20)
    assert seconds > 0


async def test_errors_free_their_place(preprocessor: Preprocessor) -> None:
    for _ in range(3):
        with pytest.raises(InvalidImageError):
            await preprocessor.tile(b"no image", 2)


async def test_too_many_images_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    gate, tiled_files = threading.Event(), []

    def held(data: bytes, **_: int) -> TiledImage:
        tiled_files.append(data)
        gate.wait()
        return TiledImage(np.zeros((1, 3, 2, 2), dtype=np.uint8), Grid(1, 1), 2, 2)

    monkeypatch.setattr(preprocessor_module, "tile_file", held)
    preprocessor = Preprocessor(
        tile_size=28, max_pixel_count=10_000, worker_count=1, max_image_count=2
    )
    images = [asyncio.create_task(preprocessor.tile(name, 2)) for name in (b"a", b"b")]
    await asyncio.sleep(0)
    with pytest.raises(OverloadedError, match="2 images wait .* limit is 2") as caught:
        await preprocessor.tile(b"c", 2)
    assert caught.value.retry_after is not None
    images[1].cancel()  # waits for the one thread, and so never reaches it
    await asyncio.wait([images[1]])
    last = asyncio.create_task(preprocessor.tile(b"d", 2))
    gate.set()
    await asyncio.gather(images[0], last)
    preprocessor.close()
    assert tiled_files == [b"a", b"d"]
