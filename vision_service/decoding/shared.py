"""What a decoding process and this one share through files in memory."""

from __future__ import annotations

import mmap
import os
import weakref
from collections import deque

import numpy as np

from protos.process.memory_file import MemoryFile
from vision_service.tiling import UInt8Array

FILE_NAME = "picture"


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
        return MemoryFile(FILE_NAME, byte_count)

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
