"""A worker as the service sees it: a process, one order at a time, limits that are held."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from concurrent.futures import Executor
from pathlib import Path

from protos.errors import (
    ImageTooLargeError,
    InvalidImageError,
    ServiceError,
    UnavailableError,
)
from protos.process.memory_file import MemoryFile
from vision_service.decoding.messages import MAX_MESSAGE_BYTE_COUNT, Order, Reply, dump, load
from vision_service.decoding.shared import FILE_NAME, TilesFiles, tile_byte_count
from vision_service.tiling import Grid, TiledImage

PROGRAM = "vision_service.decoding.worker"
START_SECONDS = 60.0
# How much longer than its CPU time an image may take: workers share the cores with the engine.
WALL_FACTOR = 4.0
# A killed process is gone within milliseconds, unless the kernel cannot let go of it.
END_SECONDS = 5.0
RETRY_AFTER_SECONDS = 1.0
REFUSALS = {error.reason: error for error in (InvalidImageError, ImageTooLargeError)}
# Where a system's libraries are, and where it has temporary files.
KEPT_VARIABLES = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "TMPDIR")
# One heap for all threads: what is freed in it is kept once, and another thread may have it.
WORKER_VARIABLES = {"OPENBLAS_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}


class WorkerNotThereError(Exception):
    """The worker had ended before it was told anything."""


class WorkerLostError(Exception):
    """The worker is of no more use: it ended, or did not answer as it should."""


class RogueWorkerError(WorkerLostError):
    """The worker's answer is none: its decoder may have been taken over."""


class WorkerBugError(Exception):
    """Our code failed in the worker; the message is its traceback."""


class WorkerProcess:
    """A worker, which belongs to the event loop once it is started."""

    def __init__(
        self, process: subprocess.Popen[bytes], connection: socket.socket, tiles_files: TilesFiles
    ) -> None:
        self._process = process
        self._connection = connection
        self._tiles_files = tiles_files
        self._reply: asyncio.Task[bytes] | None = None

    @classmethod
    def start(cls, tiles_files: TilesFiles, thread_count: int) -> WorkerProcess:
        """Starts a process, on a thread that outlives it: Linux ends it with that thread.

        Args:
            tiles_files: where the files for tiles come from.
            thread_count: the most that an order may name.

        Raises:
            OSError: the system has no room for another process.
        """
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        with theirs:
            number = theirs.fileno()
            arguments = map(str, (number, os.getpid(), thread_count))
            process = subprocess.Popen(  # noqa: S603 - our own module
                [sys.executable, "-m", PROGRAM, *arguments],
                pass_fds=(number,),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env=_environment(),
            )
        return cls(process, ours, tiles_files)

    async def is_up(self) -> bool:
        """Waits for the worker's first sign; False when it ended, or gave none."""
        try:
            return bool(await self._line(START_SECONDS))
        except asyncio.TimeoutError:
            return False

    def next_line(self) -> asyncio.Task[bytes]:
        """Returns the task that ends with the worker's next message, empty when it has ended."""
        if self._reply is None:
            self._reply = asyncio.create_task(self._receive())
        return self._reply

    async def end(self, threads: Executor) -> int | None:
        """Kills the process, if it still runs.

        Returns:
            Its exit status, a signal's as minus its number; None when it cannot be killed.
        """
        if self._reply is not None:
            self._reply.cancel()
            await asyncio.wait({self._reply})
        self._connection.close()
        self._process.kill()
        return await asyncio.get_running_loop().run_in_executor(threads, self._wait)

    def _wait(self) -> int | None:
        try:
            return self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            return None

    async def tile(self, order: Order, data: bytes) -> tuple[TiledImage, float]:
        """Has an image decoded and tiled.

        Returns:
            The tiles, in memory of their own, and the seconds that they took.

        Raises:
            ServiceError: the worker's refusal.
            WorkerBugError: our code failed in it.
            WorkerNotThereError: it was not there any more, so that another one may try.
            WorkerLostError: it ended over it, or broke the rules.
            asyncio.TimeoutError: it took too long.
        """
        # A cap of one tile gives one tile; every other one may add the thumbnail. Pages that no
        # tile is put into take no memory.
        most = order.max_tile_count + (order.max_tile_count > 1)
        tiles = self._tiles_files.take(tile_byte_count(most, order.tile_size))
        try:
            reply = await self._reply_to(order, data, tiles.number)
            grid = _grid(reply, order)
            array = self._tiles_files.map(tiles, grid.tile_count, order.tile_size)
            return TiledImage(array, grid, reply.width, reply.height), reply.seconds
        finally:
            del tiles  # the frames of an error that is kept would keep them

    async def plan(self, order: Order, data: bytes) -> tuple[Grid, float]:
        """Has it told how `tile` would cut an image; the seconds and errors as there."""
        reply = await self._reply_to(order, data)
        return _grid(reply, order), reply.seconds

    async def _reply_to(self, order: Order, data: bytes, *numbers: int) -> Reply:
        image = MemoryFile(FILE_NAME, len(data))
        try:
            await asyncio.to_thread(image.write, data)
            self._send(order, [image.number, *numbers])
            return _reply(await self._line(WALL_FACTOR * order.cpu_seconds), order)
        finally:
            del image  # as above

    def _send(self, order: Order, numbers: list[int]) -> None:
        try:
            socket.send_fds(self._connection, [dump(order)], numbers)
        except OSError as error:
            raise WorkerNotThereError from error

    async def _line(self, seconds: float) -> bytes:
        line = await asyncio.wait_for(self.next_line(), seconds)
        self._reply = None
        return line

    async def _receive(self) -> bytes:
        loop = asyncio.get_running_loop()
        try:
            return await loop.sock_recv(self._connection, MAX_MESSAGE_BYTE_COUNT)
        except OSError:
            return b""


def refusal(error: Exception, status: int | None, order: Order) -> ServiceError:
    """Returns what a client is told of an image that a worker was lost over.

    Args:
        error: what `tile` raised.
        status: the worker's exit status.
        order: what it was told to do.
    """
    if isinstance(error, asyncio.TimeoutError) or status == -signal.SIGPROF:
        return ImageTooLargeError(
            f"decoding the image took more than {order.cpu_seconds:.1f} s, the limit for its size",
            field="image",
        )
    if isinstance(error, RogueWorkerError) or status != -signal.SIGKILL:
        return InvalidImageError("the image file broke its decoder", field="image")
    # Not our kill: an operator's, or the kernel's when memory runs out.
    return UnavailableError(
        "the process that decoded the image was killed", retry_after=RETRY_AFTER_SECONDS
    )


def _grid(reply: Reply, order: Order) -> Grid:
    return Grid(reply.column_count, reply.row_count, order.has_thumbnail)


def _reply(line: bytes, order: Order) -> Reply:
    """Returns a worker's answer when it has one; a decoder may say anything."""
    if not line:
        raise WorkerLostError
    try:
        reply = load(Reply, line)
        is_grid = 0 < reply.column_count * reply.row_count <= order.max_tile_count
    except (ValueError, TypeError) as error:
        raise RogueWorkerError from error
    if reply.reason == ServiceError.reason:
        raise WorkerBugError(reply.message)
    if reply.reason:
        raise REFUSALS.get(reply.reason, InvalidImageError)(reply.message, field="image")
    if not is_grid or reply.column_count < 0:
        raise RogueWorkerError
    return reply


def _environment() -> dict[str, str]:
    """Returns the worker's: what it takes to import our code, and none of the service's secrets."""
    places = os.pathsep.join([str(Path(__file__).parents[2]), *filter(None, sys.path)])
    kept = {name: os.environ[name] for name in KEPT_VARIABLES if name in os.environ}
    return {**WORKER_VARIABLES, "PYTHONPATH": places, **kept}
