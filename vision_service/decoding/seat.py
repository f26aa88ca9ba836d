"""A worker's seat: it has a worker at all times, and gives it one image after another."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from concurrent.futures import Executor

import structlog

from protos.errors import ServiceError
from vision_service.decoding.messages import Order
from vision_service.decoding.process import (
    END_SECONDS,
    START_SECONDS,
    WALL_FACTOR,
    WorkerLostError,
    WorkerNotThereError,
    WorkerProcess,
    refusal,
)
from vision_service.decoding.shared import TilesFiles
from vision_service.decoding.waiting import Job, WaitingLine

# Between two tries to start a worker where the system has no room for one.
RESTART_SECONDS = 1.0
logger = structlog.get_logger()


class WorkerSeat:
    """Belongs to the event loop's thread."""

    def __init__(
        self,
        line: WaitingLine,
        order: Callable[[Job], Order],
        tiles_files: TilesFiles,
        threads: Executor,
        thread_count: int,
    ) -> None:
        self._line = line
        self._order = order
        self._tiles_files = tiles_files
        self._threads = threads
        self._thread_count = thread_count
        self._due_at = -math.inf

    def is_in_time(self) -> bool:
        """Whether the seat is free, or does what it does no longer than it should take."""
        return time.monotonic() < self._due_at

    async def work(self) -> None:
        """Serves the line until it is cancelled; a worker that ended is replaced at once."""
        while True:
            self._expect(START_SECONDS)
            worker = await self._start()
            try:
                if worker is not None and await worker.is_up():
                    while await self._serve(worker):
                        pass
                    continue
            finally:
                if worker is not None:
                    await worker.end(self._threads)
            logger.error("worker_start_failed")
            self._expect(-math.inf)
            await asyncio.sleep(RESTART_SECONDS)

    async def _start(self) -> WorkerProcess | None:
        """Returns a process that is to become a worker; None when there is no room for one."""
        loop = asyncio.get_running_loop()
        starting = loop.run_in_executor(
            self._threads, WorkerProcess.start, self._tiles_files, self._thread_count
        )
        try:
            return await asyncio.shield(starting)
        except (OSError, RuntimeError) as error:  # no process, or no thread to start it
            logger.error("no_room_for_a_worker", error=str(error))
            return None
        except asyncio.CancelledError:
            await (await starting).end(self._threads)
            raise

    async def _serve(self, worker: WorkerProcess) -> bool:
        """Has one image tiled, or planned; returns whether the worker is of further use."""
        self._expect(math.inf)
        job = await self._next_job(worker)
        if job is None:
            return False
        try:
            return await self._tile(worker, job)
        finally:
            self._line.give_back(job)

    async def _tile(self, worker: WorkerProcess, job: Job) -> bool:
        """Delivers tiles, a grid or a refusal; returns whether the worker is of further use."""
        order = self._order(job)
        self._expect(WALL_FACTOR * order.cpu_seconds + END_SECONDS)
        try:
            work = worker.tile if job.is_decoded else worker.plan
            job.settle(await work(order, job.data))
        except ServiceError as error:
            # Its frames lead back to the job: a circle would hold the image until it is found.
            job.refuse(error.with_traceback(None))
        except WorkerNotThereError:
            self._line.put_back(job)
            return False
        except (WorkerLostError, asyncio.TimeoutError) as error:
            status = await worker.end(self._threads)
            logger.warning("worker_lost", exit_status=status, image=str(job.header))
            job.refuse(refusal(error, status, order))
            return False
        except Exception as error:  # noqa: BLE001 - no descriptors, or a bug: its request logs it
            job.refuse(error)
            return False
        return True

    async def _next_job(self, worker: WorkerProcess) -> Job | None:
        """Waits for a job; returns None when the worker ends before there is one."""
        taking, lost = asyncio.create_task(self._line.take()), worker.next_line()
        try:
            await asyncio.wait({taking, lost}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            taking.cancel()  # of no effect when it is done
        if not lost.done():
            return taking.result()
        if taking.done() and not taking.cancelled():
            self._line.put_back(taking.result())
            self._line.give_back(taking.result())
        return None

    def _expect(self, seconds: float) -> None:
        self._due_at = time.monotonic() + seconds
