"""The tile batcher: joins the tiles of all requests in flight into one engine call at a time."""

from __future__ import annotations

import asyncio
import queue
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import structlog
import torch

from protos.errors import EngineDeadError, OverloadedError
from protos.process.memory import is_out_of_memory
from vision_service.engines.base import EncodingBatch, VisionEngine

RETRY_AFTER_SECONDS = 1.0
# One that the engine computes, and the next one, so that the engine does not wait for this thread.
BATCHES_IN_FLIGHT = 2
logger = structlog.get_logger()


@dataclass(frozen=True)
class EncodedTiles:
    """What the engine made of one image's tiles.

    Attributes:
        embeddings: [tiles, tokens_per_tile, hidden], on the CPU, sharing memory with no other.
        queue_seconds: time spent waiting for the engine.
        forward_seconds: time that the engine spent on the batches that the tiles were in.
        is_finite: whether all values of the embeddings are.
    """

    embeddings: torch.Tensor
    queue_seconds: float
    forward_seconds: float
    is_finite: bool


@dataclass(eq=False)
class _Job:
    """One image's way through the batcher; everything below `done` is the worker's."""

    tiles: torch.Tensor  # [tiles, 3, tile_size, tile_size] uint8
    done: asyncio.Future[EncodedTiles]
    submitted_at: float = field(default_factory=time.perf_counter)
    taken_count: int = 0
    embeddings: list[torch.Tensor] = field(default_factory=list)
    forward_seconds: float = 0.0
    is_finite: bool = True

    def take(self, count: int) -> torch.Tensor:
        """Returns the next tiles, at most `count`."""
        part = self.tiles[self.taken_count : self.taken_count + count]
        self.taken_count += len(part)
        return part

    @property
    def waiting_count(self) -> int:
        return len(self.tiles) - self.taken_count

    @property
    def is_encoded(self) -> bool:
        return sum(map(len, self.embeddings)) == len(self.tiles)

    def result(self) -> EncodedTiles:
        waited = time.perf_counter() - self.submitted_at - self.forward_seconds
        whole = self.embeddings[0] if len(self.embeddings) == 1 else torch.cat(self.embeddings)
        return EncodedTiles(whole, waited, self.forward_seconds, self.is_finite)


@dataclass(frozen=True)
class _Batch:
    """The images that the engine has parts of, in the order of the parts."""

    jobs: list[_Job]
    tile_count: int
    encoding: EncodingBatch
    started_at: float


class TileBatcher:
    """Feeds the engine with batches made of whatever waits when the engine becomes free.

    So an idle engine never waits for a batch to fill, and a busy one finds a fuller batch. A busy
    engine is given a second batch only if that batch is full. Use as an async context manager.

    Two threads: the event loop's owns `_jobs` (all images that hold tiles here); the worker's owns
    the engine, `_waiting` and `_in_flight`. A queue leads in, `call_soon_threadsafe` leads out; no
    locks. A cancelled job is dropped before the next batch, and counts until then.

    Attributes:
        encoded_tile_count: tiles that the engine has encoded so far.
        padding_tile_count: tiles that it has computed in addition, to fill batches up.
    """

    def __init__(
        self, engine: VisionEngine, *, max_batch_tile_count: int, max_queued_tile_count: int
    ) -> None:
        self._engine = engine
        self._max_batch_tile_count = max_batch_tile_count
        self._max_queued_tile_count = max_queued_tile_count
        self._jobs: set[_Job] = set()
        self._inbox: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._waiting: deque[_Job] = deque()
        self._in_flight: deque[_Batch] = deque()
        self._engine_free_at = 0.0
        self.encoded_tile_count = 0
        self.padding_tile_count = 0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="engine")

    async def __aenter__(self) -> TileBatcher:
        self._loop = asyncio.get_running_loop()
        self._worker = self._thread.submit(self._work)
        self._worker.add_done_callback(self._on_worker_end)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._inbox.put(None)
        await asyncio.to_thread(self._thread.shutdown)

    def is_healthy(self) -> bool:
        """Whether the engine still works."""
        return not self._worker.done() and self._engine.is_alive()

    async def encode(self, tiles: torch.Tensor) -> EncodedTiles:
        """Returns the embeddings of one image's tiles.

        Args:
            tiles: [tiles, 3, tile_size, tile_size] uint8, on the CPU.

        Raises:
            OverloadedError: the queue has no room for the tiles, or the engine no memory.
            EngineDeadError: the engine failed, now or earlier.
        """
        if not self.is_healthy():
            raise _engine_dead()
        self._refuse_overload(len(tiles))
        job = _Job(tiles, self._loop.create_future())
        self._jobs.add(job)
        self._inbox.put(job)
        return await job.done

    def _refuse_overload(self, tile_count: int) -> None:
        queued = sum(len(job.tiles) for job in self._jobs)
        if queued + tile_count > self._max_queued_tile_count:
            raise OverloadedError(
                f"{queued} tiles wait for the engine and this image has {tile_count}; "
                f"the limit is {self._max_queued_tile_count}",
                retry_after=RETRY_AFTER_SECONDS,
            )

    def _settle(self, job: _Job, result: EncodedTiles | OverloadedError | None) -> None:
        self._jobs.discard(job)
        if job.done.done():
            return
        if isinstance(result, OverloadedError):
            job.done.set_exception(result)
        elif result is not None:
            job.done.set_result(result)

    def _fail_all(self) -> None:
        for job in self._jobs:
            if not job.done.done():
                job.done.set_exception(_engine_dead())
        self._jobs.clear()

    # What follows runs on the worker's thread.

    def _work(self) -> None:
        while self._receive():
            if self._may_start():
                self._start_batch()
            else:
                self._finish_batch(self._in_flight.popleft())
        while self._in_flight:
            self._finish_batch(self._in_flight.popleft())

    def _receive(self) -> bool:
        """Takes in what has arrived; waits only while there is nothing to do. False: close."""
        while True:
            try:
                job = self._inbox.get(block=not self._waiting and not self._in_flight)
            except queue.Empty:
                return True
            if job is None:
                return False
            self._waiting.append(job)

    def _may_start(self) -> bool:
        """Whether the next batch is to start before the oldest in flight is finished."""
        if not self._in_flight:
            return True
        if len(self._in_flight) == BATCHES_IN_FLIGHT or self._in_flight[0].encoding.is_ready():
            return False
        self._drop_cancelled()
        waiting_count = sum(job.waiting_count for job in self._waiting)
        return waiting_count >= self._max_batch_tile_count

    def _drop_cancelled(self) -> None:
        for job in [job for job in self._waiting if job.done.cancelled()]:
            self._waiting.remove(job)
            self._post(job, None)

    def _start_batch(self) -> None:
        self._drop_cancelled()
        jobs, parts = [], []
        room = self._max_batch_tile_count
        while room and self._waiting:
            job = self._waiting[0]
            jobs.append(job)
            parts.append(job.take(room))
            room -= len(parts[-1])
            if not job.waiting_count:
                self._waiting.popleft()
        if jobs:
            self._submit(jobs, parts)

    def _submit(self, jobs: list[_Job], parts: list[torch.Tensor]) -> None:
        """Gives the engine a batch; one that there is no memory for ends its images alone."""
        started_at = time.perf_counter()
        try:
            encoding = self._engine.submit(parts)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            self._refuse(jobs, sum(map(len, parts)), error)
            return
        self._in_flight.append(_Batch(jobs, sum(map(len, parts)), encoding, started_at))

    def _refuse(self, jobs: list[_Job], tile_count: int, error: Exception) -> None:
        """Ends a batch's images for want of memory."""
        logger.error("batch_out_of_memory", error=str(error), exc_info=error)
        for job in jobs:
            if job in self._waiting:
                self._waiting.remove(job)
            self._post(job, _out_of_memory(tile_count))

    def _finish_batch(self, batch: _Batch) -> None:
        try:
            parts = batch.encoding.wait()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            self._refuse(batch.jobs, batch.tile_count, error)
            return
        now = time.perf_counter()
        seconds = now - max(batch.started_at, self._engine_free_at)
        self._engine_free_at = now
        self._count(parts, batch.encoding.padding_tile_count)
        finite = batch.encoding.are_finite()
        for job, part, is_finite in zip(batch.jobs, parts, finite, strict=True):
            job.embeddings.append(part)
            job.forward_seconds += seconds
            job.is_finite &= is_finite
            if job.is_encoded:
                self._post(job, job.result())

    def _count(self, parts: list[torch.Tensor], padding_count: int) -> None:
        tile_count = sum(map(len, parts))
        self.encoded_tile_count += tile_count
        self.padding_tile_count += padding_count
        logger.debug(
            "batch_encoded",
            image_count=len(parts),
            tile_count=tile_count,
            padding_tile_count=padding_count,
        )

    def _on_worker_end(self, worker: Future[None]) -> None:
        self._loop.call_soon_threadsafe(self._fail_all)
        if error := worker.exception():
            logger.error("engine_died", error=str(error), exc_info=error)

    def _post(self, job: _Job, result: EncodedTiles | OverloadedError | None) -> None:
        self._loop.call_soon_threadsafe(self._settle, job, result)


def _out_of_memory(tile_count: int) -> OverloadedError:
    return OverloadedError(
        f"there was no memory for a batch of {tile_count} tiles; a smaller"
        " --max-batch-tile-count of the vision service takes less",
        retry_after=RETRY_AFTER_SECONDS,
    )


def _engine_dead() -> EngineDeadError:
    return EngineDeadError("the vision engine has stopped; its service is restarting")
