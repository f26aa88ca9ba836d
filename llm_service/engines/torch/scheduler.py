"""Which sequences the next step computes, and how many tokens of each."""

from __future__ import annotations

import time
from bisect import insort
from collections import Counter
from operator import attrgetter

from llm_service.engines.base import Account
from llm_service.engines.torch.block_manager import BlockManager
from llm_service.engines.torch.sequence import Sequence, Status

_ORDER = attrgetter("order")
_REST = attrgetter("uncomputed_count")


class Scheduler:
    """Which sequences run, fair by request and not by sequence, within a token budget a step.

    A free slot goes to the highest priority, among these to the request that holds the fewest, then
    to the oldest sequence. While others wait, a request keeps no more than a quarter of the slots:
    for each that one below its quarter lacks, one above it gives back its last, one a step. Waiting
    for its choices to end would take as long as it likes; and the quarter stops the giving back
    before it can go to and fro.

    The next tokens of running sequences come first, so that a long new prompt takes only what they
    leave of the budget, and is read in chunks. Of several prompts the shortest is read first, also
    where that lets a new request in, but for a quarter of the budget, which is the oldest's: no
    prompt waits for a longer one, nor for ever. The choices of a request come one after the other,
    so that all but the first find its prompt in the cache.

    A sequence is admitted when the cache has room for all the tokens it has; it takes further
    blocks as it grows. When none is left, the last sequence in the order gives its blocks back and
    is computed anew later.

    What a sequence finds in host memory is copied while steps of others go on. One such copy is
    begun a step; a step waits for it where there is nothing else to do.

    Attributes:
        blocks: the KV cache's.
        waiting: sequences that wait for their turn, first ones first.
        running: those that have a slot, likewise.
        preemption_count: how often a sequence gave its slot and blocks back so far.
    """

    def __init__(
        self,
        blocks: BlockManager,
        max_step_token_count: int,
        max_running_count: int,
        max_mixed_token_count: int | None = None,
        max_decode_count: int = 0,
    ) -> None:
        """Makes an empty one.

        Args:
            blocks: the KV cache's.
            max_step_token_count: most tokens of a step.
            max_running_count: slots.
            max_mixed_token_count: most tokens of a step beside sequences that write, which wait
                for it; None: as of any step.
            max_decode_count: most sequences and drafts of a step.
        """
        self.blocks = blocks
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self.preemption_count = 0
        self._max_step_token_count = max_step_token_count
        self._max_mixed_token_count = max_mixed_token_count or max_step_token_count
        self._max_decode_count = max_decode_count
        self._free_slots = list(reversed(range(max_running_count)))
        self._share = max(1, max_running_count // 4)
        self._held_counts: Counter[Account] = Counter()
        self._unreadable: list[Sequence] = []

    @property
    def has_work(self) -> bool:
        """Whether any sequence is not finished."""
        return bool(self.waiting or self.running)

    @property
    def startable_count(self) -> int:
        """New sequences that the next step would let run: none while one was turned away."""
        return 0 if self.waiting or not self.blocks.free_count else len(self._free_slots)

    @property
    def awaits_masks(self) -> bool:
        """Whether a running sequence cannot go on before its mask has come."""
        return any(sequence.awaits_mask for sequence in self.running)

    def add(self, sequence: Sequence) -> None:
        """Queues a new sequence. Alone, it must fit into the cache up to its greatest length."""
        insort(self.waiting, sequence, key=_ORDER)

    def schedule(self) -> list[Sequence]:
        """Returns the sequences of the next step, with `scheduled_count` set and blocks held.

        Empty while every running sequence waits for a token in flight, or for its mask.
        """
        self._share_slots()
        scheduled: list[Sequence] = []
        budget = self._max_step_token_count
        decoding: list[Sequence] = []
        reading: list[Sequence] = []
        for sequence in self.running:
            if sequence.is_ready:
                (decoding if sequence.uncomputed_count == 1 else reading).append(sequence)
        room = min(self._max_decode_count, self._max_step_token_count)
        draft_room = room - len(self.running) - len(self.waiting)
        for sequence in decoding:
            if sequence.drafts:
                draft_room -= self._fit_drafts(sequence, draft_room)
            if budget == 0 or not self._make_room(sequence):
                break
            scheduled.append(sequence)
            budget -= self._schedule_tokens(sequence, budget)
        if len(reading) < len(self.running):  # some write, if not all of these in this step
            budget = min(budget, max(1, self._max_mixed_token_count - len(scheduled)))
        self._refuse_unreadable()
        readers = [sequence for sequence in reading if sequence.status is Status.RUNNING]
        budget = self._read(scheduled, readers, budget)
        while budget > 0 and (admitted := self._admit()) is not None:
            if admitted.is_arriving:
                break
            scheduled.append(admitted)
            budget -= self._schedule_tokens(admitted, budget)
        return scheduled or self._schedule_arriving(budget)

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

    def restart(self, sequence: Sequence) -> None:
        """Has a sequence computed anew by its own work alone."""
        sequence.start_over()
        if sequence.status is Status.RUNNING:
            self._preempt(sequence)

    def _read(self, scheduled: list[Sequence], readers: list[Sequence], budget: int) -> int:
        """Schedules chunks of prompts; returns what is left of the budget."""
        if not readers or budget == 0:
            return budget
        oldest = readers[0]
        self._admit_shorter(readers, budget)
        reserve = min(max(1, budget // 4), oldest.uncomputed_count)
        for reader in sorted(readers, key=_REST):
            if reader is oldest:
                reserve = 0
            if budget > reserve:
                scheduled.append(reader)
                budget -= self._schedule_tokens(reader, budget - reserve)
        return budget

    def _admit_shorter(self, readers: list[Sequence], budget: int) -> None:
        """Adds new requests whose prompts are shorter than one that is being read.

        Only as many as this step can read: whoever is admitted holds blocks for its whole prompt.
        """
        longest = max(map(_REST, readers))
        while sum(map(_REST, readers)) - longest < budget and self.waiting:
            newcomer = self._next_waiting()
            if self._held_counts[newcomer.account] or newcomer.uncomputed_count >= longest:
                break
            if self._admit() is None or newcomer.is_arriving:
                break
            readers.append(newcomer)

    def _schedule_tokens(self, sequence: Sequence, budget: int) -> int:
        if sequence.arrival is not None:
            sequence.await_arrival()
        sequence.scheduled_count = min(sequence.uncomputed_count + len(sequence.drafts), budget)
        self.blocks.register(sequence)
        return sequence.scheduled_count

    def _fit_drafts(self, sequence: Sequence, room: int) -> int:
        """Leaves a sequence as many drafts as there is room for, and returns how many."""
        del sequence.drafts[max(0, room) :]
        if not self.blocks.can_hold(sequence):  # nobody gives blocks back for guesses
            sequence.drafts = []
        return len(sequence.drafts)

    def _schedule_arriving(self, budget: int) -> list[Sequence]:
        """Schedules a sequence whose blocks are on their way, if no other goes on meanwhile."""
        if not all(item.arrival is not None or item.awaits_mask for item in self.running):
            return []
        for sequence in self.running:
            if sequence.arrival is not None and sequence.is_ready_on_arrival:
                self._schedule_tokens(sequence, budget)
                return [sequence]
        return []

    def _make_room(self, sequence: Sequence) -> bool:
        """Gives a running sequence its blocks, preempting the last ones where none are left.

        Returns:
            False when the sequence was itself the last, or has been preempted before.
        """
        while sequence.status is Status.RUNNING:
            if self.blocks.allocate(sequence):
                return True
            self._preempt(self.running[-1])
        return False

    def _share_slots(self) -> None:
        """Frees the slot of a request with more than its share for one that has less."""
        if self._free_slots or not self.waiting or max(self._held_counts.values()) <= self._share:
            return
        newcomer = self._next_waiting()
        if self._held_counts[newcomer.account] >= self._share:
            return
        # One that relies on rows in the cache alone might not be readable any more afterwards.
        givers = [
            sequence
            for sequence in self.running
            if self._held_counts[sequence.account] > self._share
            and sequence.order[0] >= newcomer.order[0]
            and not sequence.required_count
        ]
        if givers:
            self._preempt(max(givers, key=lambda one: (self._held_counts[one.account], one.order)))

    def _preempt(self, sequence: Sequence) -> None:
        self.preemption_count += 1
        self._stop_running(sequence)
        sequence.computed_count = 0
        sequence.drafts = []
        sequence.status = Status.WAITING
        self.add(sequence)

    def _stop_running(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self.blocks.release(sequence)
        self._free_slots.append(sequence.slot)
        self._held_counts[sequence.account] -= 1
        if not self._held_counts[sequence.account]:
            del self._held_counts[sequence.account]

    def _refuse_unreadable(self) -> None:
        """Ends waiting sequences that need more of the cache than it still holds."""
        for sequence in [item for item in self.waiting if item.required_count]:
            if self.blocks.cached_count(sequence) < sequence.required_count:
                self.finish(sequence)
                self._unreadable.append(sequence)

    def _next_waiting(self) -> Sequence:
        """Returns the waiting sequence whose turn it is."""
        return min(
            self.waiting, key=lambda one: (one.order[0], self._held_counts[one.account], one.order)
        )

    def _admit(self) -> Sequence | None:
        """Lets the waiting sequence run whose turn it is; None where it cannot yet."""
        if not self.waiting or not self._free_slots:
            return None
        sequence = self._next_waiting()
        if not sequence.is_ready or not self.blocks.admit(sequence):
            return None
        self.waiting.remove(sequence)
        if sequence.cached_count is None:
            sequence.cached_count = sequence.computed_count
            sequence.account.start(time.monotonic())
        sequence.slot = self._free_slots.pop()
        sequence.status = Status.RUNNING
        self._held_counts[sequence.account] += 1
        insort(self.running, sequence, key=_ORDER)
        return sequence
