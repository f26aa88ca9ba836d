"""The program of a worker: decodes and tiles one image after another for the service.

`python -m vision_service.decoding.worker SOCKET PARENT THREADS`, where SOCKET is the number of an
open descriptor, PARENT the process that started it, and THREADS the most that an order may name. It
imports Pillow and numpy, never torch. A worker has no state between two images, so that the service
can kill it at any time.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import socket
import sys
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import contextmanager, suppress
from pathlib import Path

from PIL import Image

from protos.errors import ImageTooLargeError, InvalidImageError, ServiceError
from protos.process.allocator import keep_freed_memory
from protos.process.threads import started_pool
from vision_service.decoding.messages import MAX_MESSAGE_BYTE_COUNT, Order, Reply, dump, load
from vision_service.decoding.metadata import check_sums, without_metadata
from vision_service.decoding.shared import map_tiles, read_file
from vision_service.decoding.structure import check_scans
from vision_service.pictures.opening import import_plugins
from vision_service.threads import Threads
from vision_service.tiling import Grid, choose_grid, cut_into, decode, upright_size

# A sentence may quote a decoder, and JSON takes up to twelve bytes for a character.
MAX_SENTENCE_CHARACTER_COUNT = 1000
# Freed memory that stays with the process: to get cleared pages for each image anew takes up to a
# third of the time that decoding does.
KEPT_BYTE_COUNT = 128 * 1024 * 1024
# The parent's end of the socket is what ends a worker, not a signal for its whole group.
IGNORED_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
PR_SET_PDEATHSIG = 1


def main() -> None:
    """Answers orders until the service closes its end of the socket."""
    connection = socket.socket(fileno=int(sys.argv[1]))
    _settle(parent=int(sys.argv[2]))
    import_plugins()
    keep_freed_memory(kept_byte_count=KEPT_BYTE_COUNT)
    pool = started_pool(int(sys.argv[3]) - 1)
    connection.sendall(dump(Reply()))
    while True:
        line, files, _, _ = socket.recv_fds(connection, MAX_MESSAGE_BYTE_COUNT, 2)
        if not line:
            return
        reply = answer(load(Order, line), pool, *files)
        for file in files:
            os.close(file)
        connection.sendall(dump(reply))


def answer(order: Order, pool: Executor, image_file: int, tiles_file: int | None = None) -> Reply:
    """Decodes and tiles within the order's limits; every error becomes a reply."""
    try:
        with _limited(order.cpu_seconds, order.memory_byte_count):
            started = time.perf_counter()
            data = without_metadata(read_file(image_file, order.file_byte_count), order.format)
            with _decoding(data, order):
                if tiles_file is None:
                    size = upright_size(data, order.format, order.max_pixel_count)
                    return _reply(_grid(order, *size), *size, started)
                return _tile(order, data, tiles_file, Threads(order.thread_count, pool), started)
    except ServiceError as error:
        return Reply(error.reason, error.message[:MAX_SENTENCE_CHARACTER_COUNT])
    except MemoryError:
        return Reply(
            ImageTooLargeError.reason,
            f"decoding the image takes more than the {order.memory_byte_count} bytes of memory "
            "that its header accounts for",
        )
    except Exception:  # noqa: BLE001 - a bug of ours, which the service logs
        return Reply(ServiceError.reason, traceback.format_exc()[-MAX_SENTENCE_CHARACTER_COUNT:])


def _tile(order: Order, data: bytes, tiles_file: int, threads: Threads, started: float) -> Reply:
    if order.format == "JPEG":
        check_scans(data)
    image = decode(data, order.format, order.max_pixel_count, order.transparency)
    grid = _grid(order, *image.size)
    cut_into(map_tiles(tiles_file, grid.tile_count, order.tile_size), image, grid, threads)
    return _reply(grid, *image.size, started)


def _grid(order: Order, width: int, height: int) -> Grid:
    return choose_grid(width, height, order.max_tile_count, order.tile_size, order.policy)


def _reply(grid: Grid, width: int, height: int, started: float) -> Reply:
    return Reply(
        column_count=grid.column_count,
        row_count=grid.row_count,
        width=width,
        height=height,
        seconds=time.perf_counter() - started,
    )


@contextmanager
def _decoding(data: bytes, order: Order) -> Iterator[None]:
    # Pillow has a limit of its own, and refuses what has over twice that, before it takes memory.
    Image.MAX_IMAGE_PIXELS = order.max_pixel_count
    try:
        yield
    except InvalidImageError:
        check_sums(data, order.format)  # says more, where the format can tell
        raise


@contextmanager
def _limited(cpu_seconds: float, memory_byte_count: int) -> Iterator[None]:
    """Ends the process after so much CPU time; a MemoryError after so many more private bytes."""
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if used := private_byte_count():
        limit = used + memory_byte_count
        limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))
    # RLIMIT_CPU counts whole seconds of the process's whole life.
    signal.setitimer(signal.ITIMER_PROF, cpu_seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))


def private_byte_count() -> int:
    """Returns the bytes that RLIMIT_DATA counts; 0 where the system does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[5])
    except (OSError, ValueError, IndexError):
        return 0
    return pages * resource.getpagesize()


def _settle(parent: int) -> None:
    """Makes the process one that dies before, and not after, the service."""
    for number in IGNORED_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before that was said
            sys.exit()
        # Where memory runs out, the kernel ends a worker first: it loses one image.
        with suppress(OSError):  # some sandboxes have it read-only
            Path("/proc/self/oom_score_adj").write_text("1000")


if __name__ == "__main__":
    main()
