"""Memory that services of one host share: who writes owns it, who reads copies from it.

All of it is files in a folder. A reader has a marker there, a small file whose bytes nobody else
knows: a writer that is told them, and finds them in its own folder, sees the same memory. The
writer lends slots of its one file. A slot begins with a nonce and its size as long as it is lent,
so that who has read it knows that all of it was lent, and that nobody wrote in it meanwhile.

Nothing is mapped. To copy by read and write releases the interpreter's lock as well, and a file
that somebody cuts off is an error, not a signal that kills the process. Each file is locked by the
process that made it, so that those of one that was killed are known by having no lock.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import re
import secrets
import stat
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import (
    AbstractContextManager,
    ExitStack,
    asynccontextmanager,
    contextmanager,
    suppress,
)
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import structlog

from protos.errors import DataLossError
from protos.process.first_fit import FirstFit
from protos.process.settings import MIB
from protos.process.threads import started_pool

logger = structlog.get_logger()

End = TypeVar("End")

FILE_NAME = re.compile(r"internvl-[0-9a-f]{32}")
NONCE_BYTE_COUNT = 32
# How long the size is that follows a slot's nonce, big-endian.
SIZE_BYTE_COUNT = 8
# Linux's file system in memory, where each user has a folder unless told otherwise.
DEVICE = Path("/dev/shm")  # noqa: S108 - folders in it are their users' own
# From a slot's beginning to its data; slots begin at multiples of it.
ALIGNMENT = 4096
# What one thread reads at a time. A thread that ends such a piece may have to wait for the
# interpreter's lock, so they are not small.
PIECE_BYTE_COUNT = 4 * MIB
READER_THREAD_COUNT = 4


@dataclass(frozen=True)
class Marker:
    """A reader's file by its name, and the bytes that it holds."""

    file: str
    nonce: bytes


@dataclass(frozen=True)
class Slot:
    """A lent part of a writer's file: where it begins, and what it begins with meanwhile."""

    file: str
    offset: int
    nonce: bytes

    @property
    def data_offset(self) -> int:
        """Where the data begin in the file."""
        return self.offset + ALIGNMENT

    def head(self, byte_count: int) -> bytes:
        """Returns what it begins with while it is lent with so many bytes of data."""
        return self.nonce + byte_count.to_bytes(SIZE_BYTE_COUNT, "big")


class SharedFolder:
    """A folder in which this user's processes have files with names of their own."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)

    def close(self) -> None:
        """Ends the use of the folder."""
        os.close(self._descriptor)

    @contextmanager
    def new_file(self) -> Iterator[tuple[str, int]]:
        """Makes a file, locked until it is removed at the end; yields its name and descriptor."""
        name, descriptor = self._locked_file()
        try:
            yield name, descriptor
        finally:
            with suppress(FileNotFoundError):
                os.unlink(name, dir_fd=self._descriptor)
            os.close(descriptor)

    def _locked_file(self) -> tuple[str, int]:
        while True:
            name = f"internvl-{secrets.token_hex(16)}"
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL
            descriptor = os.open(name, flags, 0o600, dir_fd=self._descriptor)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if os.fstat(descriptor).st_nlink:
                return name, descriptor
            os.close(descriptor)  # somebody swept it up before it was locked

    @contextmanager
    def opened(self, name: str) -> Iterator[int]:
        """Opens a file of this user's; yields its descriptor.

        Raises:
            OSError: there is none of this name, or it is no regular file or somebody else's.
        """
        if not FILE_NAME.fullmatch(name):
            raise OSError(errno.EINVAL, "not the name of a file with shared memory")
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK  # a FIFO would have us wait
        descriptor = os.open(name, flags, dir_fd=self._descriptor)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
                raise OSError(errno.EPERM, "no regular file of this user's")
            yield descriptor
        finally:
            os.close(descriptor)

    def holds(self, marker: Marker) -> bool:
        """Says whether the marker's file is here, and holds what it says."""
        with suppress(OSError), self.opened(marker.file) as descriptor:
            is_marker = os.fstat(descriptor).st_size == len(marker.nonce) == NONCE_BYTE_COUNT
            return is_marker and _begins_with(descriptor, 0, marker.nonce)
        return False

    def sweep(self) -> None:
        """Removes the files of processes that have ended without doing so."""
        for name in os.listdir(self._descriptor):
            with suppress(OSError), self.opened(name) as descriptor:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.unlink(name, dir_fd=self._descriptor)
                logger.info("shared_memory_swept", file=name)


@asynccontextmanager
async def sharing(
    path: Path | None, kind: Callable[[SharedFolder], AbstractContextManager[End]]
) -> AsyncIterator[End | None]:
    """Yields a reader's or a writer's end of the memory in a folder, which is swept first.

    Without a path the folder is this user's own, and None is yielded where there can be none.

    Raises:
        OSError: the folder that was asked for cannot be used.
    """
    exits, end = await asyncio.to_thread(_open, path, kind)
    try:
        yield end
    finally:
        await asyncio.to_thread(exits.close)


def _open(
    path: Path | None, kind: Callable[[SharedFolder], AbstractContextManager[End]]
) -> tuple[ExitStack, End | None]:
    with ExitStack() as exits:
        try:
            if sys.platform != "linux":
                raise OSError("memory is shared on Linux alone")
            folder = SharedFolder(_own_folder() if path is None else path)
            exits.callback(folder.close)
            folder.sweep()
            end = exits.enter_context(kind(folder))
        except OSError as error:
            if path is not None:
                raise
            logger.warning("shared_memory_unavailable", error=str(error))
            return ExitStack(), None
        logger.info("shared_memory", folder=str(folder.path))
        return exits.pop_all(), end


def _own_folder() -> Path:
    path = DEVICE / f"internvl-{os.geteuid()}"
    path.mkdir(mode=0o700, exist_ok=True)
    _check_own(path)
    return path


def _check_own(path: Path) -> None:
    """Refuses what somebody else has put there; what passes, nobody else can exchange."""
    status = path.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
        raise OSError(errno.EPERM, "not a folder of this user's", str(path))
    if status.st_mode & 0o077:
        raise OSError(errno.EPERM, "a folder that others may use", str(path))


class SlotWriter:
    """One file of slots, which this process lends.

    The file grows with what is lent at a time, and then stays: to take memory that has been used
    before costs nothing. Slots are taken and given back in the event loop. A thread writes: one, as
    the system lets one write to a file at a time, and a slot is wiped after it has been filled.
    """

    def __init__(
        self, folder: SharedFolder, file: str, descriptor: int, max_byte_count: int
    ) -> None:
        self._folder = folder
        self._file = file
        self._descriptor = descriptor
        self._parts = FirstFit(max_byte_count)
        self._pool = ThreadPoolExecutor(1, "shared-memory")
        self._has_told = False

    @classmethod
    @contextmanager
    def open(cls, folder: SharedFolder, max_byte_count: int) -> Iterator[SlotWriter]:
        """Yields a writer of at most so many bytes; its file is removed at the end."""
        with folder.new_file() as (file, descriptor):
            writer = cls(folder, file, descriptor, max_byte_count)
            with writer._pool:  # all that still writes ends before the file does
                yield writer

    @asynccontextmanager
    async def lent(self, data: memoryview, marker: Marker) -> AsyncIterator[Slot | None]:
        """Yields a slot that holds the data until the block's end.

        None: who has this marker sees other memory, or there is no room.
        """
        byte_count = ALIGNMENT + -(-len(data) // ALIGNMENT) * ALIGNMENT
        if not self._folder.holds(marker) or (offset := self._parts.take(byte_count)) is None:
            yield None
            return
        slot = Slot(self._file, offset, secrets.token_bytes(NONCE_BYTE_COUNT))
        loop = asyncio.get_running_loop()
        try:
            if is_filled := await loop.run_in_executor(self._pool, self._fill, slot, data):
                yield slot
        finally:
            self._give_back(slot)
        if not is_filled:
            yield None

    def _fill(self, slot: Slot, data: memoryview) -> bool:
        """Says whether readers can find it, and there was memory for it."""
        try:
            if not os.fstat(self._descriptor).st_nlink:
                raise FileNotFoundError(errno.ENOENT, "somebody has removed the file", self._file)
            # Written to without this, memory that is short would be so after most of it was taken.
            os.posix_fallocate(self._descriptor, slot.offset, ALIGNMENT + len(data))
            _write(self._descriptor, data, slot.data_offset)
            _write(self._descriptor, memoryview(slot.head(len(data))), slot.offset)
        except OSError as error:
            self._tell(error)
            return False
        return True

    def _give_back(self, slot: Slot) -> None:
        with suppress(RuntimeError):  # the writer has closed, and its file is gone
            wiping = self._pool.submit(self._wipe, slot)
            asyncio.wrap_future(wiping).add_done_callback(
                lambda _: self._parts.give_back(slot.offset)
            )

    def _wipe(self, slot: Slot) -> None:
        with suppress(OSError):  # of a hole, if there was no memory
            os.pwrite(self._descriptor, secrets.token_bytes(NONCE_BYTE_COUNT), slot.offset)

    def _tell(self, error: OSError) -> None:
        if not self._has_told:
            self._has_told = True
            logger.warning("shared_memory_short", folder=str(self._folder.path), error=str(error))


class SlotReader:
    """Reads slots that others lend.

    Attributes:
        marker: shows a writer that it is the same memory.
    """

    def __init__(self, folder: SharedFolder, marker: Marker) -> None:
        self.marker = marker
        self._folder = folder
        self._pool = started_pool(READER_THREAD_COUNT)

    @classmethod
    @contextmanager
    def open(cls, folder: SharedFolder) -> Iterator[SlotReader]:
        """Yields a reader; its marker is removed at the end."""
        nonce = secrets.token_bytes(NONCE_BYTE_COUNT)
        with folder.new_file() as (file, descriptor):
            os.pwrite(descriptor, nonce, 0)
            reader = cls(folder, Marker(file, nonce))
            with reader._pool:
                yield reader

    def read(self, slot: Slot, data: memoryview) -> Iterator[int]:
        """Fills `data` from a slot; yields how many bytes are there, piece after piece.

        They are those that were lent if it comes to its end. It blocks, so it is for a thread.

        Raises:
            DataLossError: the slot is not lent, or not any more, or with another size.
        """
        try:
            with self._folder.opened(slot.file) as descriptor:
                _check_lent(descriptor, slot, len(data))
                read = partial(_read, descriptor, slot.data_offset, data)
                yield from _in_pieces(self._pool, read, len(data))
                _check_lent(descriptor, slot, len(data))
        except (OSError, OverflowError) as error:  # an offset beyond those of files
            logger.warning("shared_memory_unreadable", file=slot.file, error=str(error))
            raise DataLossError(
                "the embedding is not in the shared memory, or not any more", retry_after=0.0
            ) from error


def _check_lent(descriptor: int, slot: Slot, byte_count: int) -> None:
    is_nonce = len(slot.nonce) == NONCE_BYTE_COUNT
    if not is_nonce or not _begins_with(descriptor, slot.offset, slot.head(byte_count)):
        raise OSError("no slot of this size is lent to us there")


def _begins_with(descriptor: int, offset: int, head: bytes) -> bool:
    return secrets.compare_digest(os.pread(descriptor, len(head), offset), head)


def _in_pieces(
    pool: ThreadPoolExecutor, work: Callable[[int, int], None], byte_count: int
) -> Iterator[int]:
    """Has `work` done for each piece, by its begin and end; yields the ends in order.

    No thread works any more when it has ended, however it does.
    """
    ends = [*range(PIECE_BYTE_COUNT, byte_count, PIECE_BYTE_COUNT), byte_count]
    pieces = [pool.submit(work, begin, end) for begin, end in zip([0, *ends], ends, strict=False)]
    try:
        for end, piece in zip(ends, pieces, strict=True):
            piece.result()
            yield end
    finally:
        wait(pieces)


def _write(descriptor: int, data: memoryview, offset: int) -> None:
    while data:
        count = os.pwrite(descriptor, data, offset)
        data, offset = data[count:], offset + count


def _read(descriptor: int, offset: int, data: memoryview, begin: int, end: int) -> None:
    while begin < end:
        if not (count := os.preadv(descriptor, [data[begin:end]], offset + begin)):
            raise OSError("it is shorter than announced")
        begin += count
