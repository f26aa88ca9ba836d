"""The bytes that requests hold: bodies, image files, what is collected of answers; of all."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Protocol

from protos.errors import OverloadedError
from protos.process.settings import KIB

# Of each request: what others hold never refuses a request of plain text.
FREE_BYTE_COUNT = 64 * KIB
POINTER_BYTE_COUNT = 8


def text_byte_count(texts: Iterable[str]) -> int:
    """Returns how many bytes texts in a list take."""
    return sum(sys.getsizeof(text) + POINTER_BYTE_COUNT for text in texts)


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
            share.close()

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


class Holder(Protocol):
    """Something that holds bytes of a request."""

    def let_go(self) -> None:
        """Frees them; once is enough."""


class Share:
    """What one request holds; its first bytes are free.

    Attributes:
        byte_count: bytes that it holds, the free ones among them.
    """

    def __init__(self, memory: Memory) -> None:
        self.byte_count = 0
        self._collected_byte_count = 0
        self._memory = memory
        self._holders: list[Holder] = []

    def hold(self, holder: Holder) -> None:
        """Remembers who has the bytes: an error's traceback may keep it long after the request."""
        self._holders.append(holder)

    def take(self, byte_count: int) -> None:
        """Counts bytes that the request holds from now on.

        Raises:
            OverloadedError: all requests together hold too much. This one has lost what it held,
                at once, so that no other is refused for it.
        """
        try:
            self._change(byte_count)
        except OverloadedError:
            self.close()
            raise

    def collect(self, byte_count: int) -> None:
        """Counts what is collected of the answer, so many bytes by now; raises as `take`."""
        self.take(byte_count - self._collected_byte_count)
        self._collected_byte_count = byte_count

    def close(self) -> None:
        """Frees what is held, and counts it no more."""
        for holder in self._holders:
            holder.let_go()
        self.give_back(self.byte_count)

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
        is_held: whether its bytes are here still.
    """

    def __init__(self, content: bytes | bytearray, share: Share) -> None:
        """Takes over content that is counted in the share already."""
        self.byte_count = len(content)
        self.is_held = True
        self._content = content
        self._share = share
        share.hold(self)

    @property
    def content(self) -> bytes | bytearray:
        """The file's bytes; none once they are let go."""
        return self._content

    def let_go(self) -> None:
        """Frees the bytes and gives them back, once."""
        self._content = b""
        if self.is_held:
            self.is_held = False
            self._share.give_back(self.byte_count)
