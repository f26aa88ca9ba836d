"""Files in memory that two processes share by their descriptors."""

from __future__ import annotations

import fcntl
import mmap
import os
import tempfile
import weakref
from collections import deque

import numpy as np

from vision_service.tiling import UInt8Array


class MemoryFile:
    """A file of zeros without a name; it goes with this object and the last map of it.

    It never becomes shorter, where the system can promise that: reading a map's pages that are no
    more kills a process.

    Attributes:
        number: its descriptor.
        byte_count: its size.
    """

    def __init__(self, byte_count: int) -> None:
        self.number = _create()
        self.byte_count = byte_count
        os.ftruncate(self.number, byte_count)
        if hasattr(os, "memfd_create"):
            fcntl.fcntl(self.number, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)

    def __del__(self) -> None:
        os.close(self.number)

    def write(self, data: bytes) -> None:
        """Puts bytes at the beginning."""
        rest = memoryview(data)
        while rest:
            rest = rest[os.pwrite(self.number, rest, len(data) - len(rest)) :]


class TilesFiles:
    """Files for tiles, used again: to make and to clear pages takes longer than to cut tiles.

    A file comes back when the last array over it has gone, on whichever thread that is.
    """

    def __init__(self, max_kept_count: int) -> None:
        self._kept: deque[MemoryFile] = deque(maxlen=max_kept_count)

    def take(self, byte_count: int) -> MemoryFile:
        """Returns a file of at least so many bytes, with whatever was in it."""
        if self._kept and (file := self._kept.popleft()).byte_count >= byte_count:
            return file
        return MemoryFile(byte_count)

    def map(self, file: MemoryFile, tile_count: int, tile_size: int) -> UInt8Array:
        """Returns the tiles that a worker has put into a file, as `map_tiles`."""
        tiles = map_tiles(file.number, tile_count, tile_size)
        weakref.finalize(tiles.base, self._kept.append, file).atexit = False
        return tiles


def read_file(number: int, byte_count: int) -> bytes:
    """Returns the bytes of the file of a descriptor."""
    return os.pread(number, byte_count, 0)


def map_tiles(number: int, tile_count: int, tile_size: int) -> UInt8Array:
    """Returns a file's first bytes as tiles, [tile_count, 3, tile_size, tile_size].

    The memory is the file's own, and the processes that map it share it.
    """
    # Pages that are there already are mapped at once, where the system can do that.
    flags = mmap.MAP_SHARED | getattr(mmap, "MAP_POPULATE", 0)
    pages = mmap.mmap(number, tile_byte_count(tile_count, tile_size), flags)
    shape = (tile_count, 3, tile_size, tile_size)
    return np.frombuffer(pages, dtype=np.uint8).reshape(shape)


def tile_byte_count(tile_count: int, tile_size: int) -> int:
    """Returns the bytes of so many tiles."""
    return tile_count * 3 * tile_size * tile_size


def _create() -> int:
    """Returns the descriptor of a new file that has no name."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("picture", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
