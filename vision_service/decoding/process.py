"""A worker as the service sees it: a process, one order at a time, limits that are held."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from concurrent.futures import Executor
from io import FileIO
from pathlib import Path

import structlog

from protos.errors import (
    ImageTooLargeError,
    InvalidImageError,
    ServiceError,
    UnavailableError,
)
from vision_service.decoding.messages import MAX_MESSAGE_BYTE_COUNT, Order, Reply, dump, load
from vision_service.decoding.shared import create_file, map_tiles, tile_byte_count, write_file
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
logger = structlog.get_logger()


class WorkerNotThereError(Exception):
    """The worker had ended before it was told anything."""


class WorkerLostError(Exception):
    """The worker is of no more use: it ended, or did not answer as it should."""


class RogueWorkerError(WorkerLostError):
    """The worker's answer is none: its decoder may have been taken over."""


class WorkerProcess:
    """A worker, which belongs to the event loop once it is started."""

    def __init__(self, process: subprocess.Popen[bytes], connection: socket.socket) -> None:
        self._process = process
        self._connection = connection
        self._reply: asyncio.Task[bytes] | None = None

    @classmethod
    def start(cls) -> WorkerProcess:
        """Starts a process, on a thread that outlives it: Linux ends it with that thread.

        Raises:
            OSError: the system has no room for another process.
        """
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        with theirs:
            number = theirs.fileno()
            command = [sys.executable, "-m", PROGRAM, str(number), str(os.getpid())]
            process = subprocess.Popen(
                command,
                pass_fds=(number,),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env=_environment(),
            )
        return cls(process, ours)

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
            WorkerNotThereError: it was not there any more, so that another one may try.
            WorkerLostError: it ended over it, or broke the rules.
            asyncio.TimeoutError: it took too long.
        """
        image, tiles = await asyncio.to_thread(_create_files, order, data)
        with image, tiles:
            try:
                numbers = (image.fileno(), tiles.fileno())
                socket.send_fds(self._connection, [dump(order)], numbers)
            except OSError as error:
                raise WorkerNotThereError from error
            line = await self._line(WALL_FACTOR * order.cpu_seconds)
            return _result(_reply(line), order, tiles.fileno())

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


def _create_files(order: Order, data: bytes) -> tuple[FileIO, FileIO]:
    """Returns the image's file, and an empty one for the tiles; pages that stay so take nothing."""
    # A cap of one tile gives one tile; every other one adds the thumbnail.
    most = order.max_tile_count + (order.max_tile_count > 1)
    return write_file(data), create_file(tile_byte_count(most, order.tile_size))


def _reply(line: bytes) -> Reply:
    if not line:
        raise WorkerLostError
    try:
        return load(Reply, line)
    except (ValueError, TypeError) as error:
        raise RogueWorkerError from error


def _result(reply: Reply, order: Order, tiles_file: int) -> tuple[TiledImage, float]:
    """Returns what a worker made; a decoder that was taken over may say anything."""
    if reply.reason == ServiceError.reason:
        logger.error("bug", traceback=reply.message)
        raise ServiceError("internal error; the service's log has it under this request id")
    if reply.reason:
        raise REFUSALS.get(reply.reason, InvalidImageError)(reply.message, field="image")
    grid = Grid(reply.column_count, reply.row_count)
    if min(reply.column_count, reply.row_count) < 1 or grid.cell_count > order.max_tile_count:
        raise RogueWorkerError
    tiles = map_tiles(tiles_file, grid.tile_count, order.tile_size)
    return TiledImage(tiles, grid, reply.width, reply.height), reply.seconds


def _environment() -> dict[str, str]:
    """Returns the worker's: what it takes to import our code, and none of the service's secrets."""
    root = str(Path(__file__).parents[2])
    kept = {name: os.environ[name] for name in KEPT_VARIABLES if name in os.environ}
    return {"PYTHONPATH": root, "OPENBLAS_NUM_THREADS": "1", **kept}
