"""Which sequences the next step computes, and how many tokens of each."""

from __future__ import annotations

from bisect import insort
from operator import attrgetter

from llm_service.engines.torch.block_manager import BlockManager
from llm_service.engines.torch.sequence import Sequence, Status

_ORDER = attrgetter("order")


class Scheduler:
    """By priority, then first come, first served, within a token budget a step.

    Running sequences come first, so that a long new prompt takes only what their next tokens leave
    of the budget, and is read in chunks. A sequence is admitted when the cache has room for all the
    tokens it has; it takes further blocks as it grows. When none is left, the last sequence in the
    order gives its blocks back and is computed anew later.
    """

    def __init__(
        self, blocks: BlockManager, max_step_token_count: int, max_running_count: int
    ) -> None:
        self.blocks = blocks
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self._max_step_token_count = max_step_token_count
        self._free_slots = list(reversed(range(max_running_count)))
        self._unreadable: list[Sequence] = []

    @property
    def has_work(self) -> bool:
        """Whether any sequence is not finished."""
        return bool(self.waiting or self.running)

    def add(self, sequence: Sequence) -> None:
        """Queues a new sequence. Alone, it must fit into the cache up to its greatest length."""
        insort(self.waiting, sequence, key=_ORDER)

    def schedule(self) -> list[Sequence]:
        """Returns the sequences of the next step, with `scheduled_count` set and blocks held.

        Empty while every running sequence waits for a token in flight.
        """
        scheduled: list[Sequence] = []
        budget = self._max_step_token_count
        for sequence in [sequence for sequence in self.running if sequence.is_ready]:
            if budget == 0 or not self._make_room(sequence):
                break
            scheduled.append(sequence)
            budget -= self._schedule_tokens(sequence, budget)
        self._refuse_unreadable()
        while budget > 0 and (admitted := self._admit()) is not None:
            scheduled.append(admitted)
            budget -= self._schedule_tokens(admitted, budget)
        return scheduled

    def take_unreadable(self) -> list[Sequence]:
        """Returns the sequences that the latest step has ended for rows that nobody holds."""
        unreadable, self._unreadable = self._unreadable, []
        return unreadable

    def finish(self, sequence: Sequence) -> None:
        """Takes a sequence out, wherever it is, and frees its blocks."""
        if sequence.status is Status.RUNNING:
            self._stop_running(sequence)
        elif sequence.status is Status.WAITING:
            self.waiting.remove(sequence)
        sequence.status = Status.FINISHED

    def _schedule_tokens(self, sequence: Sequence, budget: int) -> int:
        sequence.scheduled_count = min(sequence.uncomputed_count, budget)
        self.blocks.register(sequence)
        return sequence.scheduled_count

    def _make_room(self, sequence: Sequence) -> bool:
        """Gives a running sequence its blocks, preempting the last ones where none are left.

        Returns:
            False when the sequence was itself the last, or has been preempted before.
        """
        while sequence.status is Status.RUNNING and not self.blocks.can_hold(sequence):
            self._preempt_last()
        if sequence.status is not Status.RUNNING:
            return False
        self.blocks.allocate(sequence)
        return True

    def _preempt_last(self) -> None:
        sequence = self.running[-1]
        self._stop_running(sequence)
        sequence.computed_count = 0
        sequence.status = Status.WAITING
        self.add(sequence)

    def _stop_running(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self.blocks.release(sequence)
        self._free_slots.append(sequence.slot)

    def _refuse_unreadable(self) -> None:
        """Ends waiting sequences that need more of the cache than it still holds."""
        for sequence in [item for item in self.waiting if item.required_count]:
            if self.blocks.cached_count(sequence) < sequence.required_count:
                self.finish(sequence)
                self._unreadable.append(sequence)

    def _admit(self) -> Sequence | None:
        """Lets the first waiting sequence run; None where it cannot yet."""
        if not self.waiting or not self._free_slots:
            return None
        sequence = self.waiting[0]
        if not sequence.is_ready or not self.blocks.admit(sequence):
            return None
        del self.waiting[0]
        if sequence.cached_count is None:
            sequence.cached_count = sequence.computed_count
        sequence.slot = self._free_slots.pop()
        sequence.status = Status.RUNNING
        insort(self.running, sequence, key=_ORDER)
        return sequence
