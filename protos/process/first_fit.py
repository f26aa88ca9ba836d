"""Which parts of a range of bytes are taken."""

from __future__ import annotations


class FirstFit:
    """Which parts of a range of bytes are taken; a new one goes to the first gap that has room."""

    def __init__(self, byte_count: int) -> None:
        self._byte_count = byte_count
        self._taken: list[tuple[int, int]] = []  # begin and end of each, in order

    def take(self, byte_count: int) -> int | None:
        """Takes so many bytes; returns where they begin, or None if no gap has room."""
        begin = 0
        for index, (taken_begin, taken_end) in enumerate([*self._taken, (self._byte_count,) * 2]):
            if taken_begin - begin >= byte_count:
                self._taken.insert(index, (begin, begin + byte_count))
                return begin
            begin = taken_end
        return None

    def give_back(self, begin: int) -> None:
        """Frees the part that begins there."""
        self._taken = [part for part in self._taken if part[0] != begin]
