"""The preprocessor: the threads that decode and tile images, and how many images may wait."""

from __future__ import annotations

import asyncio
import functools
import time
from concurrent.futures import ThreadPoolExecutor

from protos.errors import OverloadedError
from vision_service.tiling import TiledImage, tile_file

RETRY_AFTER_SECONDS = 1.0


class Preprocessor:
    """Tiles images on worker threads (Pillow lets go of the interpreter while it works).

    Its own state is touched by the event loop's thread alone.
    """

    def __init__(
        self, *, tile_size: int, max_pixel_count: int, worker_count: int, max_image_count: int
    ) -> None:
        self._tile_file = functools.partial(
            tile_file, tile_size=tile_size, max_pixel_count=max_pixel_count
        )
        self._pool = ThreadPoolExecutor(worker_count, thread_name_prefix="preprocess")
        self._max_image_count = max_image_count
        self._image_count = 0

    async def tile(self, data: bytes, max_tile_count: int) -> tuple[TiledImage, float]:
        """Returns the tiled image and the seconds that the work took, waiting not counted.

        Raises:
            OverloadedError: max_image_count images are waiting or being tiled.
            InvalidImageError, ImageTooLargeError: as `tiling.tile_file`.
        """
        if self._image_count >= self._max_image_count:
            raise OverloadedError(
                f"{self._image_count} images wait to be decoded; "
                f"the limit is {self._max_image_count}",
                retry_after=RETRY_AFTER_SECONDS,
            )
        self._image_count += 1
        try:
            # A cancelled request that still waits for a thread leaves the pool's queue.
            return await asyncio.get_running_loop().run_in_executor(
                self._pool, self._timed, data, max_tile_count
            )
        finally:
            self._image_count -= 1

    def close(self) -> None:
        """Lets the threads end."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _timed(self, data: bytes, max_tile_count: int) -> tuple[TiledImage, float]:
        started = time.perf_counter()
        tiled = self._tile_file(data, max_tile_count=max_tile_count)
        return tiled, time.perf_counter() - started
