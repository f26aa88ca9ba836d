"""The preprocessor: images on their way to tiles, and the workers that decode them."""

from __future__ import annotations

import asyncio
import dataclasses
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from protos.errors import ImageTooLargeError, OverloadedError
from vision_service.decoding.cost import Cost, CostModel
from vision_service.decoding.headers import Header, read_header
from vision_service.decoding.messages import Order
from vision_service.decoding.seat import WorkerSeat
from vision_service.decoding.shared import TilesFiles
from vision_service.decoding.structure import check_runs
from vision_service.decoding.waiting import Job, WaitingLine
from vision_service.pictures.transparency import Transparency
from vision_service.tiling import (
    RELEASED_POLICY,
    Grid,
    TiledImage,
    TilePolicy,
    check_size,
    choose_grid,
)

RETRY_AFTER_SECONDS = 1.0


@dataclass(frozen=True)
class PreprocessorLimits:
    """What images may take.

    Attributes:
        worker_count: processes that decode, one image each at a time.
        max_image_count: most images that wait or are being decoded.
        max_pixel_count: of an image.
        max_decode_byte_count: memory of all decodes together.
        max_decode_seconds: CPU time for an image of max_pixel_count.
        thread_count: that the images share which are tiled at a time; each has one or more.
    """

    worker_count: int
    max_image_count: int
    max_pixel_count: int
    max_decode_byte_count: int
    max_decode_seconds: float
    thread_count: int = 1


class Preprocessor:
    """Tiles images in worker processes. Use as an async context manager.

    All its state belongs to the event loop's thread.
    """

    def __init__(
        self,
        tile_size: int,
        limits: PreprocessorLimits,
        transparency: Transparency = "white",
        policy: TilePolicy = RELEASED_POLICY,
    ) -> None:
        self._tile_size = tile_size
        self._policy = policy
        self._limits = limits
        self._transparency = transparency
        self._costs = CostModel(
            tile_size,
            limits.max_pixel_count,
            limits.max_decode_seconds,
            policy,
            limits.thread_count,
        )
        # Of one worker, large images may have it.
        max_large_count = max(1, limits.worker_count // 2)
        self._line = WaitingLine(limits.max_decode_byte_count, max_large_count)
        self._pending: set[asyncio.Future[tuple[Any, float]]] = set()
        # These threads outlive the processes that they start: Linux ends those with them.
        self._threads = ThreadPoolExecutor(limits.worker_count, thread_name_prefix="decoders")
        # One that is filled, and one that the engine reads, for each.
        tiles_files = TilesFiles(max_kept_count=2 * limits.worker_count)
        self._seats = [
            WorkerSeat(self._line, self._order, tiles_files, self._threads, limits.thread_count)
            for _ in range(limits.worker_count)
        ]
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Preprocessor:
        self._tasks = [asyncio.create_task(seat.work()) for seat in self._seats]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._threads.shutdown(wait=False)
        for done in self._pending:
            done.cancel()

    def is_ready(self) -> bool:
        """Whether a worker is free, or will be in time."""
        return any(seat.is_in_time() for seat in self._seats)

    async def tile(self, data: bytes, max_tile_count: int) -> tuple[TiledImage, float]:
        """Returns the tiled image and the seconds that the work took, waiting not counted.

        Raises:
            OverloadedError: max_image_count images are waiting or being tiled.
            InvalidImageError: not an image, damaged, or made to be slow.
            ImageTooLargeError: too many pixels, or too much memory or time to decode.
            UnavailableError: its worker was killed by somebody else.
        """
        tiled: tuple[TiledImage, float] = await self._done(data, max_tile_count, is_decoded=True)
        return tiled

    async def plan(self, data: bytes, max_tile_count: int) -> Grid:
        """Returns how `tile` would cut an image, without decoding it; errors as there."""
        grid: Grid
        grid, _ = await self._done(data, max_tile_count, is_decoded=False)
        return grid

    async def _done(
        self, data: bytes, max_tile_count: int, *, is_decoded: bool
    ) -> tuple[Any, float]:
        """Returns what a worker makes of an image, as a Job has it."""
        if len(self._pending) >= self._limits.max_image_count:
            raise OverloadedError(
                f"{len(self._pending)} images wait to be decoded; "
                f"the limit is {self._limits.max_image_count}",
                retry_after=RETRY_AFTER_SECONDS,
            )
        done = asyncio.get_running_loop().create_future()
        self._pending.add(done)
        try:
            header, cost = await asyncio.to_thread(self._weigh, data, max_tile_count)
            return await self._worked(Job(data, header, max_tile_count, cost, done, is_decoded))
        finally:
            self._pending.discard(done)
            del done  # a refusal's frames would lead back to it, and hold the image

    def grid(self, width: int, height: int, max_tile_count: int) -> Grid:
        """Returns how `tile` would cut an image of this size; errors as `check_size`."""
        check_size(width, height, self._limits.max_pixel_count)
        return choose_grid(width, height, max_tile_count, self._tile_size, self._policy)

    def _weigh(self, data: bytes, max_tile_count: int) -> tuple[Header, Cost]:
        header = read_header(data)
        check_size(header.width, header.height, self._limits.max_pixel_count)
        check_runs(header, len(data))
        cost = self._costs.cost(header, len(data), max_tile_count)
        if cost.memory_byte_count > self._limits.max_decode_byte_count:
            raise ImageTooLargeError(
                f"decoding the image takes up to {cost.memory_byte_count} bytes; "
                f"the limit is {self._limits.max_decode_byte_count}",
                field="image",
            )
        return header, cost

    async def _worked(self, job: Job) -> tuple[Any, float]:
        self._line.put(job)
        try:
            return await job.done
        finally:
            self._line.remove(job)  # a cancelled request may still be in it
            del job

    def _order(self, job: Job) -> Order:
        return Order(
            file_byte_count=len(job.data),
            format=job.header.format,
            tile_size=self._tile_size,
            max_tile_count=job.max_tile_count,
            **dataclasses.asdict(self._policy),
            max_pixel_count=self._limits.max_pixel_count,
            transparency=self._transparency,
            thread_count=self._thread_count(),
            cpu_seconds=job.cost.cpu_seconds,
            memory_byte_count=job.cost.memory_byte_count,
        )

    def _thread_count(self) -> int:
        """Returns the share of an image, beside those that are being tiled or will be at once."""
        image_count = min(len(self._pending), self._limits.worker_count)
        # None is pending when the one whose order this is has just been cancelled.
        return max(1, self._limits.thread_count // max(1, image_count))
