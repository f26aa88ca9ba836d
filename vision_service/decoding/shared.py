"""Files in memory that two processes share by their descriptors."""

from __future__ import annotations

import fcntl
import mmap
import os
import tempfile
from io import FileIO

import numpy as np

from vision_service.tiling import UInt8Array


def create_file(byte_count: int) -> FileIO:
    """Returns a new file of zeros, which goes when the last of its descriptors and maps does.

    Its size is final where the system can hold it so: a map of a file that became shorter kills
    the process that reads it.
    """
    if not hasattr(os, "memfd_create"):
        return _create_unlinked(byte_count)
    file = FileIO(os.memfd_create("picture", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING), "r+")
    file.truncate(byte_count)
    fcntl.fcntl(file, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
    return file


def write_file(data: bytes) -> FileIO:
    """Returns a new file with these bytes."""
    file = create_file(len(data))
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]
    return file


def read_file(file: int, byte_count: int) -> bytes:
    """Returns the file's bytes."""
    return os.pread(file, byte_count, 0)


def map_tiles(file: int, tile_count: int, tile_size: int) -> UInt8Array:
    """Returns the file's first bytes as tiles, [tile_count, 3, tile_size, tile_size].

    The memory is the file's own: it is shared, and given back when the last array has gone.
    """
    shape = (tile_count, 3, tile_size, tile_size)
    pages = mmap.mmap(file, tile_byte_count(tile_count, tile_size))
    return np.frombuffer(pages, dtype=np.uint8).reshape(shape)


def tile_byte_count(tile_count: int, tile_size: int) -> int:
    """Returns the bytes of so many tiles."""
    return tile_count * 3 * tile_size * tile_size


def _create_unlinked(byte_count: int) -> FileIO:
    with tempfile.TemporaryFile() as file:
        file.truncate(byte_count)
        return FileIO(os.dup(file.fileno()), "r+")
