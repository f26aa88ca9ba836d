"""Files in memory, which processes share by their descriptors."""

from __future__ import annotations

import fcntl
import os
import tempfile


class MemoryFile:
    """A file of zeros without a name; it goes with this object and the last map of it.

    It never becomes shorter, where the system can promise that: reading a map's pages that are no
    more kills a process.

    Attributes:
        number: its descriptor.
        byte_count: its size.
    """

    def __init__(self, name: str, byte_count: int) -> None:
        """Takes no memory before it is used; the name shows in the maps of a process.

        Raises:
            OSError: the system has none, or not so large ones.
        """
        self.number = _create(name)
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


def _create(name: str) -> int:
    """Returns the descriptor of a new file that has no name."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
