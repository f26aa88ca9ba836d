"""The bytes that requests hold: their bodies and image files, counted over all of them."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from protos.errors import OverloadedError
from protos.process.settings import KIB, MIB

# Of each request: what others hold never refuses a request of plain text.
FREE_BYTE_COUNT = 64 * KIB
# Of glibc's malloc.h.
M_MMAP_THRESHOLD = -3


def give_freed_memory_back() -> None:
    """Makes the C library return large blocks to the system as soon as they are freed.

    glibc raises the size from which it does so to that of the blocks that are freed: after some
    images of 14 MB it kept 75 MB a request that had no image any more.
    """
    if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), "mallopt"):
        library.mallopt(M_MMAP_THRESHOLD, MIB)


class Memory:
    """Counts what all requests hold.

    Attributes:
        held_byte_count: bytes that count now.
    """

    def __init__(self, max_byte_count: int) -> None:
        self.held_byte_count = 0
        self._max_byte_count = max_byte_count

    @contextmanager
    def share(self) -> Iterator[Share]:
        """Yields what one request holds; all of it is given back when the block is left."""
        share = Share(self)
        try:
            yield share
        finally:
            share.give_back(share.byte_count)

    def add(self, byte_count: int) -> None:
        """Counts more bytes, or fewer if negative.

        Raises:
            OverloadedError: they are too many.
        """
        total = self.held_byte_count + byte_count
        if byte_count > 0 and total > self._max_byte_count:
            raise OverloadedError(
                f"with this request all requests would hold {total} bytes;"
                f" the limit is {self._max_byte_count}",
                retry_after=1,
            )
        self.held_byte_count = total


class Share:
    """What one request holds; its first bytes are free.

    Attributes:
        byte_count: bytes that it holds, the free ones among them.
    """

    def __init__(self, memory: Memory) -> None:
        self.byte_count = 0
        self._memory = memory

    def take(self, byte_count: int) -> None:
        """Counts bytes that the request holds from now on.

        Raises:
            OverloadedError: all requests together hold too much; these bytes are not counted.
        """
        self._change(byte_count)

    def give_back(self, byte_count: int) -> None:
        """Counts bytes no more."""
        self._change(-byte_count)

    def _change(self, byte_count: int) -> None:
        after = self.byte_count + byte_count
        self._memory.add(_counted(after) - _counted(self.byte_count))
        self.byte_count = after


def _counted(byte_count: int) -> int:
    return max(0, byte_count - FREE_BYTE_COUNT)


class HeldFile:
    """An image file that a request holds until it is let go.

    Attributes:
        byte_count: its size.
    """

    def __init__(self, content: bytes | bytearray, share: Share) -> None:
        """Takes over content that is counted in the share already."""
        self.byte_count = len(content)
        self._content = content
        self._share = share
        self._held = True

    @property
    def content(self) -> bytes | bytearray:
        """The file's bytes; none once they are handed over or let go."""
        return self._content

    def hand_over(self) -> bytes | bytearray:
        """Returns the bytes and keeps none; they count on, for the receiver has them."""
        content, self._content = self._content, b""
        return content

    def let_go(self) -> None:
        """Frees the bytes and gives them back, once."""
        self._content = b""
        if self._held:
            self._held = False
            self._share.give_back(self.byte_count)
