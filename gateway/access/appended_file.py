"""A file that lines are added to, also by several processes, and while others rotate it."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path

# Who used what is for its owner alone; a file that is there keeps its own mode.
MODE = 0o600
# Read, too: for the last byte, and so that a named pipe can be opened before anybody reads it.
FLAGS = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC


class AppendedFile:
    """Lines go to whatever file has the path at that moment: a renamed one is made anew.

    All of it blocks: it is for a thread.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None
        self._is_mid_line = False

    def append(self, lines: Sequence[bytes]) -> int:
        """Adds whole lines by one write, so that those of other processes do not get into them.

        A line of which only the beginning could be written, as the disk was full, is ended by the
        next write: it is no JSON, and may be written again.

        Args:
            lines: each ends with a line break; none: only that the file is there.

        Returns:
            How many of the lines are in the file.

        Raises:
            OSError: it cannot be opened or written.
        """
        descriptor = self._opened()
        if not lines:
            return 0
        mend = b"\n" if self._is_mid_line else b""
        data = mend + b"".join(lines)
        count = os.write(descriptor, data)
        self._is_mid_line = data[count - 1] != ord("\n")
        # A line of which only the break is missing is there: the next write begins with one.
        return data[: count + 1].count(b"\n") - len(mend)

    def close(self) -> None:
        """Closes the file; the next `append` opens it again."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _opened(self) -> int:
        if self._descriptor is not None and self._has_moved(self._descriptor):
            self.close()
        if self._descriptor is None:
            self._descriptor = os.open(self._path, FLAGS, MODE)
            self._is_mid_line = _ends_mid_line(self._descriptor)
        return self._descriptor

    def _has_moved(self, descriptor: int) -> bool:
        try:
            return not os.path.samestat(self._path.stat(), os.fstat(descriptor))
        except FileNotFoundError:
            return True


def _ends_mid_line(descriptor: int) -> bool:
    found = os.fstat(descriptor)
    if not (stat.S_ISREG(found.st_mode) and found.st_size):
        return False
    return os.pread(descriptor, 1, found.st_size - 1) != b"\n"
