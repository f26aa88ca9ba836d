"""The KV cache's blocks: which are free, and which belong to which sequence."""

from __future__ import annotations

from llm_service.engines.torch_engine.sequence import Sequence


class BlockManager:
    """Hands out blocks of `block_size` tokens; a block belongs to at most one sequence."""

    def __init__(self, block_count: int, block_size: int) -> None:
        self.block_count = block_count
        self.block_size = block_size
        self._free = list(range(block_count))

    @property
    def free_count(self) -> int:
        """Blocks that no sequence holds."""
        return len(self._free)

    def can_hold(self, sequence: Sequence) -> bool:
        """Returns whether there are blocks enough for all tokens of the sequence."""
        return self._missing_count(sequence) <= self.free_count

    def allocate(self, sequence: Sequence) -> None:
        """Gives the sequence the blocks that its tokens need beyond those it holds.

        `can_hold` is asked first.
        """
        for _ in range(self._missing_count(sequence)):
            sequence.block_table.append(self._free.pop())

    def release(self, sequence: Sequence) -> None:
        """Takes all blocks back."""
        self._free.extend(reversed(sequence.block_table))
        sequence.block_table.clear()

    def _missing_count(self, sequence: Sequence) -> int:
        needed = -(-len(sequence.token_ids) // self.block_size)
        return needed - len(sequence.block_table)
