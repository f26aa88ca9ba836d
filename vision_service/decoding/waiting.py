"""The line of images that wait for a worker, and the memory that all decodes may take together."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import Any

from vision_service.decoding.cost import Cost
from vision_service.decoding.headers import Header
from vision_service.tiling import Grid, TiledImage


@dataclass(eq=False)
class Job:
    """An image on its way.

    Attributes:
        data: the file.
        header: what the file says of itself.
        max_tile_count: most tiles without the thumbnail.
        cost: what it may take.
        done: the tiled image, or its grid, and the seconds that this took; or the refusal.
        is_decoded: whether it is tiled; otherwise its grid is told.
    """

    data: bytes
    header: Header
    max_tile_count: int
    cost: Cost
    done: asyncio.Future[tuple[Any, float]]
    is_decoded: bool = True
    since: float = field(default_factory=time.monotonic)

    def settle(self, result: tuple[TiledImage | Grid, float]) -> None:
        """Delivers the tiles or the grid, if anybody still waits for them."""
        if not self.done.done():
            self.done.set_result(result)

    def refuse(self, error: Exception) -> None:
        """Delivers a refusal, if anybody still waits for one."""
        if not self.done.done():
            self.done.set_exception(error)


class WaitingLine:
    """First come, first served, except that large images leave half of the workers to others.

    Whoever is first and needs more memory than there is makes all behind it wait, so that it gets
    its turn. Belongs to the event loop's thread.
    """

    def __init__(self, max_byte_count: int, max_large_count: int) -> None:
        self._max_byte_count = max_byte_count
        self._max_large_count = max_large_count
        self._byte_count = 0
        self._large_count = 0
        self._jobs: list[Job] = []
        self._takers: list[asyncio.Future[Job]] = []

    def put(self, job: Job) -> None:
        """Adds a job at the end."""
        self._jobs.append(job)
        self._match()

    def remove(self, job: Job) -> None:
        """Takes a job out that nobody waits for any more, if it still is in the line."""
        if job in self._jobs:
            self._jobs.remove(job)
            self._match()

    async def take(self) -> Job:
        """Returns the next job; what it costs is taken until `give_back`."""
        taker: asyncio.Future[Job] = asyncio.get_running_loop().create_future()
        self._takers.append(taker)
        self._match()
        try:
            return await taker
        except asyncio.CancelledError:
            if taker.done() and not taker.cancelled():
                self.put_back(taker.result())
                self.give_back(taker.result())
            raise

    def give_back(self, job: Job) -> None:
        """Makes what the job took free for others."""
        self._byte_count -= job.cost.memory_byte_count
        self._large_count -= job.cost.is_large
        self._match()

    def put_back(self, job: Job) -> None:
        """Puts a job that was taken, and not begun, back to the front; `give_back` is to follow."""
        self._jobs.insert(0, job)

    def _match(self) -> None:
        while self._takers and (job := self._next()) is not None:
            # The worker that was busy last: its memory and its caches are warm.
            taker = self._takers.pop()
            if taker.done():  # cancelled
                continue
            self._jobs.remove(job)
            self._byte_count += job.cost.memory_byte_count
            self._large_count += job.cost.is_large
            taker.set_result(job)

    def _next(self) -> Job | None:
        for job in self._jobs:
            if job.cost.is_large and self._large_count >= self._max_large_count:
                continue
            has_room = self._byte_count + job.cost.memory_byte_count <= self._max_byte_count
            return job if has_room else None
        return None
