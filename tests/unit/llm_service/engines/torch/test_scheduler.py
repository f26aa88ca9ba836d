"""Scheduling: blocks are neither leaked nor shared, order is kept, every sequence ends."""

from __future__ import annotations

from itertools import count
from unittest.mock import Mock

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_service.engines.base import Account, Prompt
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


def _choices(count: int, prompt_length: int = 2, max_tokens: int = 30) -> list[Sequence]:
    """Returns the sequences of one request."""
    account, token_id = Account(), next(ARRIVALS) + 2
    choices = [_sequence(prompt_length, max_tokens, token_id) for _ in range(count)]
    for choice in choices:
        choice.account = account
    return choices


def _scheduler(
    *sequences: Sequence, max_running_count: int, budget: int = 50, block_count: int = 200
) -> Scheduler:
    scheduler = Scheduler(BlockManager(block_count, BLOCK_SIZE), budget, max_running_count)
    for sequence in sequences:
        scheduler.add(sequence)
    return scheduler


def _step(scheduler: Scheduler) -> list[Sequence]:
    scheduled = scheduler.schedule()
    _finish_step(scheduler, scheduled)
    return scheduled


def _held(scheduler: Scheduler, *requests: list[Sequence]) -> list[int]:
    """Returns how many slots each request holds."""
    return [sum(choice in scheduler.running for choice in choices) for choices in requests]


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


def test_steps_that_write_answers_are_shorter() -> None:
    scheduler = Scheduler(BlockManager(100, BLOCK_SIZE), 20, 8, max_mixed_token_count=10)
    first, second = _sequence(35, 20), _sequence(30, 1)
    counts = []
    scheduler.add(first)
    for _ in range(5):
        scheduled = scheduler.schedule()
        counts.append((first.scheduled_count, second.scheduled_count))
        _finish_step(scheduler, scheduled)
        if len(counts) == 2:
            scheduler.add(second)
    assert counts == [(20, 0), (15, 0), (1, 9), (1, 9), (1, 9)]


def test_a_step_is_shorter_also_beside_one_whose_token_is_in_flight() -> None:
    scheduler = Scheduler(BlockManager(100, BLOCK_SIZE), 20, 8, max_mixed_token_count=10)
    guided = _sequence(4, 5)
    guided.matcher = Mock()
    scheduler.add(guided)
    for sequence in scheduler.schedule():
        sequence.mark_launched()
    long = _sequence(35, 1)
    scheduler.add(long)
    assert scheduler.schedule() == [long]
    assert long.scheduled_count == 10


def _beside_decodes(scheduler: Scheduler) -> tuple[list[Sequence], Sequence]:
    """Returns three sequences that decode, and one whose prompt is still to be read."""
    decoding = [_sequence(1, 20) for _ in range(3)]
    for sequence in decoding:
        scheduler.add(sequence)
    _finish_step(scheduler, scheduler.schedule())
    late = _sequence(4, 1)
    scheduler.add(late)
    return decoding, late


def test_decodes_that_fill_a_step_leave_room_to_read() -> None:
    scheduler = Scheduler(BlockManager(100, BLOCK_SIZE), 8, 8, max_mixed_token_count=2)
    decoding, late = _beside_decodes(scheduler)
    scheduled = scheduler.schedule()
    assert [one.scheduled_count for one in [*decoding, late]] == [1, 1, 1, 1]
    _finish_step(scheduler, scheduled)


def test_drafts_take_no_token_of_a_step_that_another_sequence_needs() -> None:
    """Also where a step has fewer tokens than the device has room for decodes."""
    scheduler = Scheduler(BlockManager(100, BLOCK_SIZE), 5, 8, max_decode_count=8)
    decoding, late = _beside_decodes(scheduler)
    for sequence in decoding:
        sequence.drafts = [0, 0, 0]
    scheduler.schedule()
    assert [one.scheduled_count for one in [*decoding, late]] == [2, 1, 1, 1]


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
    assert scheduler.preemption_count == 1


def test_free_slots_are_startable_while_nobody_was_turned_away() -> None:
    scheduler = _scheduler(
        *(_sequence(1, 20) for _ in range(63)), max_running_count=64, budget=100, block_count=200
    )
    assert scheduler.startable_count == 0  # not until those that came have been let in
    _step(scheduler)
    assert scheduler.startable_count == 1
    for sequence in (_sequence(1, 20), _sequence(1, 20)):
        scheduler.add(sequence)
    _step(scheduler)
    assert (len(scheduler.running), scheduler.startable_count) == (64, 0)


def test_without_room_in_a_step_or_in_the_cache_nobody_can_start() -> None:
    scheduler = _scheduler(_sequence(30, 1), _sequence(30, 1), max_running_count=8, budget=10)
    _step(scheduler)
    assert (len(scheduler.running), scheduler.startable_count) == (1, 0)
    scheduler = _scheduler(_sequence(7, 1), max_running_count=8, block_count=2)
    scheduler.schedule()
    assert (scheduler.blocks.free_count, scheduler.startable_count) == (0, 0)


def test_waiting_sequences_keep_their_order_behind_a_large_one() -> None:
    scheduler = Scheduler(BlockManager(4, BLOCK_SIZE), max_step_token_count=50, max_running_count=8)
    running, large, small = _sequence(8, 1), _sequence(12, 1), _sequence(1, 1)
    for sequence in (running, large, small):
        scheduler.add(sequence)
    assert scheduler.schedule() == [running]
    assert list(scheduler.waiting) == [large, small]


def test_a_new_request_has_a_slot_within_two_steps_of_anyones_end() -> None:
    several = [_choices(4) for _ in range(4)]  # twice as many as there are slots
    scheduler = _scheduler(*sum(several, []), max_running_count=8)
    _step(scheduler)
    assert _held(scheduler, *several) == [2, 2, 2, 2]
    (newcomer,) = _choices(1)
    scheduler.add(newcomer)
    for _ in range(3):
        _step(scheduler)
    assert newcomer not in scheduler.running
    scheduler.finish(scheduler.running[5])
    assert newcomer in [*_step(scheduler), *_step(scheduler)]


def test_a_request_alone_has_all_slots_and_gives_back_what_is_above_a_quarter() -> None:
    greedy = _choices(8)
    scheduler = _scheduler(*greedy, max_running_count=8)
    _step(scheduler)
    assert _held(scheduler, greedy) == [8]
    first, second = _choices(3), _choices(1)
    for sequence in (*first, *second):
        scheduler.add(sequence)
    held = []
    for _ in range(6):
        _step(scheduler)
        held.append(_held(scheduler, greedy, first, second))
    # One in a step, and to and fro never: two is a quarter of eight.
    assert held == [[7, 1, 0], [6, 1, 1], [5, 2, 1], [5, 2, 1], [5, 2, 1], [5, 2, 1]]
    # The last choices have gone, and come back in their order when there is room.
    assert [choice in scheduler.running for choice in greedy] == [True] * 5 + [False] * 3
    scheduler.finish(second[0])
    _step(scheduler)
    assert _held(scheduler, greedy, first) == [5, 3]
    for choice in first:
        scheduler.finish(choice)
    _step(scheduler)
    assert _held(scheduler, greedy) == [8]


def test_what_has_a_lower_priority_takes_no_slot_away() -> None:
    greedy = _choices(8)
    scheduler = _scheduler(*greedy, max_running_count=8)
    _step(scheduler)
    later, sooner = _sequence(2, 5), _sequence(2, 5)
    later.order, sooner.order = (1, later.order[1]), (-1, sooner.order[1])
    scheduler.add(later)
    _step(scheduler)
    assert _held(scheduler, greedy, [later]) == [8, 0]
    scheduler.add(sooner)
    _step(scheduler)
    assert _held(scheduler, greedy, [later], [sooner]) == [7, 0, 1]


def test_choices_read_their_prompt_once_whoever_else_reads() -> None:
    several, other = _choices(4, prompt_length=33), _choices(1, prompt_length=37)
    scheduler = _scheduler(*several, *other, max_running_count=8, budget=8)
    read: dict[Sequence, int] = dict.fromkeys([*several, *other], 0)
    while any(not choice.output_length for choice in read):
        scheduled = scheduler.schedule()
        for sequence in scheduled:
            read[sequence] += 0 if sequence.output_length else sequence.scheduled_count
        _finish_step(scheduler, scheduled)
    # Eight full blocks are shared, and each computes its last token.
    assert [read[choice] for choice in several] == [33, 1, 1, 1]
    assert read[other[0]] == 37


def test_a_short_prompt_does_not_wait_for_a_long_one() -> None:
    long = _sequence(400, 1)
    scheduler = _scheduler(long, max_running_count=8, budget=20)
    _step(scheduler)
    short = _sequence(12, 5)
    scheduler.add(short)
    _step(scheduler)
    assert short.output_length == 1
    assert long.computed_count == 20 + 8


def test_a_long_prompt_is_read_however_many_short_ones_come() -> None:
    long = _sequence(100, 1)
    scheduler = _scheduler(long, max_running_count=8, budget=20)
    for _ in range(100 // 5):
        for _ in range(2):
            scheduler.add(_sequence(20, 1))
        _step(scheduler)
    assert long.finish_reason == "length"


def test_of_prompts_that_are_as_long_the_older_is_read_first() -> None:
    first, second = _sequence(30, 1), _sequence(30, 1)
    scheduler = _scheduler(first, second, max_running_count=8, budget=20)
    counts = []
    for _ in range(3):
        scheduled = scheduler.schedule()
        counts.append((first.scheduled_count, second.scheduled_count))
        _finish_step(scheduler, scheduled)
    assert counts == [(20, 0), (10, 10), (0, 20)]
