"""The KV cache's blocks: who holds which, and which full ones can be used again."""

from __future__ import annotations

from array import array
from collections import OrderedDict

from llm_service.engines.base import HostCacheLoad
from llm_service.engines.torch.host_cache import HostCache
from llm_service.engines.torch.sequence import Sequence


class BlockManager:
    """Hands out blocks of `block_size` tokens, and shares full ones between equal prefixes.

    A free block keeps its keys and values until it is handed out again, so that a later sequence
    can share them. The block that has been free for longest goes first; of one sequence, the last.
    Where there is a host cache, what it held goes there, and comes back into other blocks.
    """

    def __init__(
        self, block_count: int, block_size: int, host_cache: HostCache | None = None
    ) -> None:
        self.block_count = block_count
        self.block_size = block_size
        self.host_cache = host_cache
        self._holder_counts = [0] * block_count
        self._free = OrderedDict.fromkeys(range(block_count))
        self._digests: dict[int, bytes] = {}
        self._blocks: dict[bytes, int] = {}

    @property
    def free_count(self) -> int:
        """Blocks that no sequence holds."""
        return len(self._free)

    @property
    def host_cache_load(self) -> HostCacheLoad | None:
        """What the host cache holds, in tokens; None if there is none."""
        if (cache := self.host_cache) is None:
            return None
        counts = cache.used_count, cache.slot_count, cache.loaded_count, cache.evicted_count
        return HostCacheLoad(*(count * self.block_size for count in counts))

    def can_hold(self, sequence: Sequence) -> bool:
        """Returns whether enough blocks are free for the tokens of a running sequence."""
        return self._missing_count(sequence) <= self.free_count

    def allocate(self, sequence: Sequence) -> bool:
        """Gives the sequence the blocks that its tokens need beyond those it holds.

        Returns:
            False when too few are free; nothing has changed then.
        """
        if count := self._missing_count(sequence):
            if count > self.free_count:
                return False
            sequence.block_table.extend(self._handed_out(count))
        return True

    def cached_count(self, sequence: Sequence) -> int:
        """Returns how many leading tokens of a sequence that holds no block are in a cache."""
        return len(self._cached_blocks(sequence)) * self.block_size

    def admit(self, sequence: Sequence) -> bool:
        """Gives a waiting sequence all the blocks that its tokens need, if enough are free.

        The tokens of a known prefix count as computed. At least one token is left to compute: its
        logits give the next one.

        Returns:
            False when too few are free; nothing has changed then.
        """
        cached = self._cached_blocks(sequence)
        shared = [block for block in cached.values() if block is not None]
        free_shared = sum(self._holder_counts[block] == 0 for block in shared)
        if self._missing_count(sequence) - len(shared) > self.free_count - free_shared:
            return False
        for block in shared:
            self._free.pop(block, None)
            self._holder_counts[block] += 1
        sequence.block_table.extend(self._loaded(cached))
        if self.host_cache is not None:
            sequence.arrival = self.host_cache.arrival(sequence.block_table)
        sequence.computed_count = sequence.shared_count = len(cached) * self.block_size
        self.allocate(sequence)
        return True

    def register(self, sequence: Sequence) -> None:
        """Lets sequences with the same prefix share the blocks that the present step fills.

        A step writes all its keys and values before it reads any, so that a sequence that is
        admitted to the same step may use them already.
        """
        known = min(sequence.computed_count + sequence.scheduled_count, len(sequence.token_ids))
        if (count := known // self.block_size) == sequence.registered_count:
            return
        for index in range(sequence.registered_count, count):
            digest = sequence.block_digest(index, self.block_size)
            block = sequence.block_table[index]
            if digest is not None and digest not in self._blocks:
                self._blocks[digest] = block
                self._digests[block] = digest
        sequence.registered_count = count

    def release(self, sequence: Sequence) -> None:
        """Takes all blocks back.

        Those that are still being loaded the device waits for: they may go to anybody.
        """
        sequence.await_arrival()
        for block in reversed(sequence.block_table):
            self._holder_counts[block] -= 1
            if self._holder_counts[block] == 0:
                # What nobody can find again is handed out before what may be asked for.
                self._free[block] = None
                self._free.move_to_end(block, last=block in self._digests)
        sequence.block_table = array("i")  # another one: see BlockTables
        sequence.registered_count = 0

    def forget(self, sequence: Sequence) -> None:
        """Lets nobody find any block of the sequence's tokens again, whoever has computed it."""
        for index in range(len(sequence.token_ids) // self.block_size):
            digest = sequence.block_digest(index, self.block_size)
            if digest is None:
                continue
            if (block := self._blocks.pop(digest, None)) is not None:
                del self._digests[block]
            if self.host_cache is not None:
                self.host_cache.forget(digest)

    def _cached_blocks(self, sequence: Sequence) -> dict[bytes, int | None]:
        """Returns the leading blocks that are known by their digests; None: in the host cache."""
        # The cache has no logits, which are to be its own work.
        if sequence.unscored_count or not sequence.trusts_cache:
            return {}
        blocks: dict[bytes, int | None] = {}
        for index in range((len(sequence.token_ids) - 1) // self.block_size):
            digest = sequence.block_digest(index, self.block_size)
            if digest is None:
                break
            block = self._blocks.get(digest)
            if block is None and (self.host_cache is None or digest not in self.host_cache):
                break
            blocks[digest] = block
        return blocks

    def _loaded(self, cached: dict[bytes, int | None]) -> list[int]:
        """Returns the blocks of a prefix; those in the host cache are loaded into new ones."""
        absent = [digest for digest, block in cached.items() if block is None]
        if self.host_cache is not None and absent:
            taken = self.host_cache.take(absent)
            blocks = self._handed_out(len(absent))
            self.host_cache.load(taken, blocks)
            self._blocks.update(zip(absent, blocks, strict=True))
            self._digests.update(zip(blocks, absent, strict=True))
        return [self._blocks[digest] for digest in cached]

    def _handed_out(self, count: int) -> list[int]:
        """Returns free blocks; what can be found in them goes to the host cache."""
        blocks = [self._free.popitem(last=False)[0] for _ in range(count)]
        dropped = [(self._digests.pop(block), block) for block in blocks if block in self._digests]
        for digest, _ in dropped:
            del self._blocks[digest]
        if self.host_cache is not None:
            self.host_cache.save(dropped)
        for block in blocks:
            self._holder_counts[block] = 1
        return blocks

    def _missing_count(self, sequence: Sequence) -> int:
        return -(-sequence.needed_length // self.block_size) - len(sequence.block_table)
