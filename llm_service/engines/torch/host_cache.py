"""Blocks that the KV cache has dropped, in host memory until somebody asks for them again."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Collection, Iterable, Sequence

from llm_service.engines.torch.block_copies import BlockCopies, Moment


class HostCache:
    """Which block is in which slot of host memory, by its digest: least recently used first out.

    A block that goes back to the KV cache stays here too, and need not be copied out again.

    Attributes:
        slot_count: blocks that it has room for.
        loaded_count: blocks that went back so far.
        evicted_count: blocks that made room for others so far.
    """

    def __init__(self, copies: BlockCopies) -> None:
        self.slot_count = copies.slot_count
        self.loaded_count = 0
        self.evicted_count = 0
        self._copies = copies
        self._free_slots = list(reversed(range(copies.slot_count)))
        self._slots: OrderedDict[bytes, int] = OrderedDict()
        self._arriving: deque[tuple[Moment, frozenset[int]]] = deque()

    def __contains__(self, digest: bytes) -> bool:
        return digest in self._slots

    @property
    def used_count(self) -> int:
        """Blocks that it holds."""
        return len(self._slots)

    def save(self, dropped: Iterable[tuple[bytes, int]]) -> None:
        """Keeps blocks by their digests; of several, the last ones for longest.

        The next step may overwrite them.
        """
        copied: dict[int, int] = {}
        for digest, block in dropped:
            if digest in self._slots:
                self._slots.move_to_end(digest)
            elif self._free_slots or self._slots:
                # Where there are too many, one of them has had the slot before.
                slot = self._slots[digest] = self._vacant_slot()
                copied[slot] = block
        if copied:
            self._copies.save(list(copied.values()), list(copied))

    def take(self, digests: Iterable[bytes]) -> dict[bytes, int]:
        """Returns the slots of blocks that are to be loaded; until then nothing else gets them."""
        return {digest: self._slots.pop(digest) for digest in digests}

    def load(self, taken: dict[bytes, int], blocks: Sequence[int]) -> None:
        """Has taken slots copied to as many blocks. A prefix's first block is kept for longest."""
        arrival = self._copies.load(list(taken.values()), blocks)
        self._slots.update(reversed(taken.items()))
        self._arriving.append((arrival, frozenset(blocks)))
        self.loaded_count += len(blocks)

    def arrival(self, blocks: Collection[int]) -> Moment | None:
        """Returns when all of these blocks will have been loaded; None if they have been."""
        while self._arriving and self._arriving[0][0].has_come:
            self._arriving.popleft()
        for arrival, arriving in reversed(self._arriving):  # they come one after the other
            if not arriving.isdisjoint(blocks):
                return arrival
        return None

    def forget(self, digest: bytes) -> None:
        """Lets nobody find this block again."""
        if (slot := self._slots.pop(digest, None)) is not None:
            self._free_slots.append(slot)

    def _vacant_slot(self) -> int:
        if self._free_slots:
            return self._free_slots.pop()
        _, slot = self._slots.popitem(last=False)
        self.evicted_count += 1
        return slot
