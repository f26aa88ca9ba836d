"""Scheduling: blocks are neither leaked nor shared, order is kept, every sequence ends."""

from __future__ import annotations

from itertools import count

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_service.engines.base import Prompt
from llm_service.engines.torch.block_manager import BlockManager
from llm_service.engines.torch.scheduler import Scheduler
from llm_service.engines.torch.sequence import Sequence, Status
from llm_service.sampling import SamplingParams

ARRIVALS = count()
VOCABULARY_SIZE = 10**9
BLOCK_SIZE = 4
MAX_LENGTH = 40


def _sequence(prompt_length: int, max_tokens: int, token_id: int | None = None) -> Sequence:
    """Returns a sequence that shares prefixes with those of the same token, or with none."""
    arrival = next(ARRIVALS)
    prompt = Prompt([token_id or arrival + 2] * prompt_length, torch.empty(0, 1))
    return Sequence(prompt, SamplingParams(), max_tokens, VOCABULARY_SIZE, order=(0, arrival))


def _finish_step(scheduler: Scheduler, scheduled: list[Sequence]) -> None:
    """Does what the engine does after the forward pass."""
    for sequence in scheduled:
        sampled = sequence.is_sampled
        sequence.mark_launched()
        if sampled:
            sequence.append(0)
        if sequence.finish_reason is not None:
            scheduler.finish(sequence)


def _check(scheduler: Scheduler, scheduled: list[Sequence], budget: int) -> None:
    contents: dict[int, set[tuple[int, ...]]] = {}
    for sequence in scheduler.running:
        assert len(set(sequence.block_table)) == len(sequence.block_table)
        for index, block in enumerate(sequence.block_table):
            prefix = tuple(sequence.token_ids[: (index + 1) * BLOCK_SIZE])
            contents.setdefault(block, set()).add(prefix)
    assert all(len(prefixes) == 1 for prefixes in contents.values())
    assert len(contents) + scheduler.blocks.free_count == scheduler.blocks.block_count
    assert all(not sequence.block_table for sequence in scheduler.waiting)
    assert 0 < sum(sequence.scheduled_count for sequence in scheduled) <= budget
    for sequence in scheduled:
        end = sequence.computed_count + sequence.scheduled_count
        assert sequence.scheduled_count > 0
        assert len(sequence.block_table) * BLOCK_SIZE >= end


@settings(deadline=None)
@given(
    lengths=st.lists(
        st.tuples(st.integers(1, 30), st.integers(1, 10), st.sampled_from([None, 1])),
        min_size=1,
        max_size=12,
    ),
    block_count=st.integers(MAX_LENGTH // BLOCK_SIZE, 30),
    budget=st.integers(1, 50),
    max_running=st.integers(1, 8),
    arrivals=st.lists(st.integers(0, 3), max_size=20),
    aborts=st.lists(st.tuples(st.integers(0, 60), st.integers(0, 11)), max_size=4),
)
def test_every_sequence_ends_and_no_block_is_leaked_or_shared(
    lengths: list[tuple[int, int, int | None]],
    block_count: int,
    budget: int,
    max_running: int,
    arrivals: list[int],
    aborts: list[tuple[int, int]],
) -> None:
    scheduler = Scheduler(BlockManager(block_count, BLOCK_SIZE), budget, max_running)
    sequences = [_sequence(*length) for length in lengths]
    to_come = list(sequences)
    first_admitted: list[Sequence] = []
    aborted: set[Sequence] = set()
    step = 0
    while to_come or scheduler.has_work:
        arriving = arrivals[step] if step < len(arrivals) else len(to_come)
        for sequence in to_come[:arriving]:
            scheduler.add(sequence)
        del to_come[:arriving]
        for at, index in aborts:
            # As in the engine, where only a sequence that was added and has not ended is aborted.
            if at == step and index < len(sequences) - len(to_come):
                sequence = sequences[index]
                if sequence.status is not Status.FINISHED:
                    scheduler.finish(sequence)
                    aborted.add(sequence)
        step += 1
        if not scheduler.has_work:
            continue
        scheduled = scheduler.schedule()
        assert len(scheduler.running) <= max_running
        _check(scheduler, scheduled, budget)
        first_admitted += [item for item in scheduler.running if item not in first_admitted]
        _finish_step(scheduler, scheduled)
    assert scheduler.blocks.free_count == block_count
    assert first_admitted == [item for item in sequences if item in set(first_admitted)]
    for sequence, (_, max_tokens, _) in zip(sequences, lengths, strict=True):
        assert sequence.status is Status.FINISHED
        assert not sequence.block_table
        if sequence not in aborted:
            assert sequence.finish_reason == "length"
            assert sequence.output_length == max_tokens


def test_long_prompt_leaves_the_others_their_next_token() -> None:
    scheduler = Scheduler(
        BlockManager(100, BLOCK_SIZE), max_step_token_count=10, max_running_count=8
    )
    short, long = _sequence(2, 20), _sequence(35, 1)
    scheduler.add(short)
    _finish_step(scheduler, scheduler.schedule())
    scheduler.add(long)
    counts = []
    for _ in range(4):
        scheduled = scheduler.schedule()
        counts.append((short.scheduled_count, long.scheduled_count))
        _finish_step(scheduler, scheduled)
    assert counts == [(1, 9), (1, 9), (1, 9), (1, 8)]
    assert long.finish_reason == "length"


def test_newest_is_preempted_and_waits_before_all_others() -> None:
    scheduler = Scheduler(BlockManager(3, BLOCK_SIZE), max_step_token_count=50, max_running_count=2)
    older, newer, later = _sequence(4, 5), _sequence(3, 5), _sequence(1, 1)
    for sequence in (older, newer, later):
        scheduler.add(sequence)
    _finish_step(scheduler, scheduler.schedule())  # one block each: that of `older` is full
    _finish_step(scheduler, scheduler.schedule())  # `older` takes the last block
    assert scheduler.running == [older, newer]
    assert scheduler.schedule() == [older]
    assert newer.status is Status.WAITING
    assert (newer.computed_count, len(newer.block_table)) == (0, 0)
    assert list(scheduler.waiting) == [newer, later]


def test_waiting_sequences_keep_their_order_behind_a_large_one() -> None:
    scheduler = Scheduler(BlockManager(4, BLOCK_SIZE), max_step_token_count=50, max_running_count=8)
    running, large, small = _sequence(8, 1), _sequence(12, 1), _sequence(1, 1)
    for sequence in (running, large, small):
        scheduler.add(sequence)
    assert scheduler.schedule() == [running]
    assert list(scheduler.waiting) == [large, small]
