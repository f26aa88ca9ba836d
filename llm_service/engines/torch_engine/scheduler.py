"""Which sequences the next step computes, and how many tokens of each."""

from __future__ import annotations

from collections import deque

from llm_service.engines.torch_engine.block_manager import BlockManager
from llm_service.engines.torch_engine.sequence import Sequence, Status


class Scheduler:
    """First come, first served, within a token budget a step.

    Running sequences come first, oldest first, so that a long new prompt takes only what their next
    tokens leave of the budget, and is read in chunks. A sequence is admitted when the cache has
    room for all the tokens it has; it takes further blocks as it grows. When none is left, the
    newest sequence gives its blocks back and is computed anew later.
    """

    def __init__(self, blocks: BlockManager, max_batch_tokens: int, max_running: int) -> None:
        self.blocks = blocks
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self._max_batch_tokens = max_batch_tokens
        self._max_running = max_running

    @property
    def has_work(self) -> bool:
        """Whether any sequence is not finished."""
        return bool(self.waiting or self.running)

    def add(self, sequence: Sequence) -> None:
        """Queues a new sequence. Alone, it must fit into the cache up to its greatest length."""
        self.waiting.append(sequence)

    def schedule(self) -> list[Sequence]:
        """Returns the sequences of the next step, with `scheduled_count` set and blocks held."""
        scheduled: list[Sequence] = []
        budget = self._max_batch_tokens
        for sequence in list(self.running):
            if budget == 0 or not self._make_room(sequence):
                break
            scheduled.append(sequence)
            budget -= _schedule_tokens(sequence, budget)
        while budget > 0 and self._can_admit():
            sequence = self._admit()
            scheduled.append(sequence)
            budget -= _schedule_tokens(sequence, budget)
        return scheduled

    def finish(self, sequence: Sequence) -> None:
        """Takes a sequence out, wherever it is, and frees its blocks."""
        if sequence.status is Status.RUNNING:
            self.running.remove(sequence)
        elif sequence.status is Status.WAITING:
            self.waiting.remove(sequence)
        sequence.status = Status.FINISHED
        self.blocks.release(sequence)

    def _make_room(self, sequence: Sequence) -> bool:
        """Gives a running sequence its blocks, preempting the newest ones where none are left.

        Returns:
            False when the sequence was itself the newest, or has been preempted before.
        """
        while sequence.status is Status.RUNNING and not self.blocks.can_hold(sequence):
            self._preempt_newest()
        if sequence.status is not Status.RUNNING:
            return False
        self.blocks.allocate(sequence)
        return True

    def _preempt_newest(self) -> None:
        sequence = self.running.pop()
        self.blocks.release(sequence)
        sequence.computed_count = 0
        sequence.status = Status.WAITING
        self.waiting.appendleft(sequence)

    def _can_admit(self) -> bool:
        return (
            bool(self.waiting)
            and len(self.running) < self._max_running
            and self.blocks.can_hold(self.waiting[0])
        )

    def _admit(self) -> Sequence:
        sequence = self.waiting.popleft()
        self.blocks.allocate(sequence)
        sequence.status = Status.RUNNING
        self.running.append(sequence)
        return sequence


def _schedule_tokens(sequence: Sequence, budget: int) -> int:
    sequence.scheduled_count = min(sequence.uncomputed_count, budget)
    return sequence.scheduled_count
