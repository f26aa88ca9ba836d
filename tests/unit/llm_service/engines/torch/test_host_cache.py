"""The host cache: what was dropped comes back as it was, in time, and no more than has room."""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import dataclass, field
from typing import cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_service.engines.base import HostCacheLoad, ImageRows, Prompt
from llm_service.engines.torch.block_copies import BlockCopies, Moment
from llm_service.engines.torch.block_manager import BlockManager
from llm_service.engines.torch.host_cache import HostCache
from llm_service.engines.torch.scheduler import Scheduler
from llm_service.engines.torch.sequence import Sequence, Status
from llm_service.sampling import SamplingParams
from tests.embedding_ids import embedding_id

BLOCK_SIZE = 2
VOCABULARY_SIZE = 100
NO_ROWS = torch.empty(0, 1)
Content = tuple[int, ...]
NOTHING: Content = (-1,)


@dataclass
class Arrival:
    """A copy that ends, after those before it, when somebody says so or waits for it."""

    copied: list[tuple[int, Content]]
    blocks: dict[int, Content]
    earlier: list[Arrival]
    has_come: bool = False

    def hold(self) -> None:
        """Ends, and writes what it copies, whoever has the blocks by now."""
        if self.has_come:
            return
        for arrival in self.earlier:
            arrival.hold()
        self.blocks.update(self.copied)
        self.has_come = True


@dataclass
class Contents:
    """Stands for a device: what is in each block and slot, and copies that take their time."""

    slot_count: int
    blocks: dict[int, Content] = field(default_factory=dict)
    slots: dict[int, Content] = field(default_factory=dict)
    arrivals: list[Arrival] = field(default_factory=list)
    saved_count: int = 0

    def save(self, blocks: Items[int], slots: Items[int]) -> None:
        """Copies at once, and spoils the blocks."""
        assert len(set(slots)) == len(slots) == len(blocks)
        self.saved_count += len(blocks)
        for block, slot in zip(blocks, slots, strict=True):
            assert 0 <= slot < self.slot_count
            self.slots[slot] = self.blocks[block]
            self.blocks[block] = NOTHING

    def load(self, slots: Items[int], blocks: Items[int]) -> Moment:
        """Reads the slots at once, and writes the blocks later."""
        contents = [self.slots[slot] for slot in slots]
        self.blocks.update(dict.fromkeys(blocks, NOTHING))
        copied = list(zip(blocks, contents, strict=True))
        arrival = Arrival(copied, self.blocks, self.arrivals[-1:])
        self.arrivals.append(arrival)
        return cast(Moment, arrival)

    def arrive(self) -> None:
        """Ends the oldest copy under way."""
        for arrival in self.arrivals:
            if not arrival.has_come:
                arrival.hold()
                return

    def compute(self, sequence: Sequence) -> None:
        """Reads all blocks before a sequence's scheduled tokens, and writes those of these."""
        end = sequence.computed_count + sequence.scheduled_count
        for index in range(-(-end // BLOCK_SIZE)):
            block = sequence.block_table[index]
            known = sequence.token_ids[: min(end, (index + 1) * BLOCK_SIZE)]
            before = sequence.token_ids[: min(sequence.computed_count, (index + 1) * BLOCK_SIZE)]
            if index * BLOCK_SIZE < sequence.computed_count:
                assert self.blocks[block][: len(before)] == tuple(before)
            self.blocks[block] = tuple(known)


def _scheduler(
    block_count: int, slot_count: int, budget: int = 100, max_running: int = 4
) -> tuple[Scheduler, Contents]:
    contents = Contents(slot_count)
    cache = HostCache(cast(BlockCopies, contents))
    blocks = BlockManager(block_count, BLOCK_SIZE, cache)
    return Scheduler(blocks, budget, max_running), contents


def _sequence(
    token_ids: list[int], max_tokens: int = 1, salt: str = "", arrival: int = 0
) -> Sequence:
    prompt = Prompt(token_ids, NO_ROWS, cache_salt=salt)
    return Sequence(prompt, SamplingParams(), max_tokens, VOCABULARY_SIZE, order=(0, arrival))


def _step(scheduler: Scheduler, contents: Contents, token_id: int = 9) -> list[Sequence]:
    scheduled = scheduler.schedule()
    for sequence in scheduled:
        contents.compute(sequence)
        is_sampled = sequence.is_sampled
        sequence.mark_launched()
        if is_sampled:
            sequence.append(token_id)
        if sequence.finish_reason is not None:
            scheduler.finish(sequence)
    return scheduled


def _run(scheduler: Scheduler, contents: Contents, sequence: Sequence) -> int | None:
    """Runs one sequence to its end; returns how many tokens it found in a cache."""
    scheduler.add(sequence)
    while scheduler.has_work:
        assert _step(scheduler, contents)
    return sequence.cached_count


def _load(scheduler: Scheduler) -> HostCacheLoad:
    load = scheduler.blocks.host_cache_load
    assert load is not None
    return load


def _prompt(first: int, count: int = 8) -> list[int]:
    return list(range(first, first + count))


@settings(deadline=None, max_examples=200)
@given(
    prompts=st.lists(
        st.tuples(st.integers(0, 2), st.integers(1, 14), st.integers(1, 4)),
        min_size=2,
        max_size=20,
    ),
    block_count=st.integers(9, 14),
    slot_count=st.integers(1, 30),
    budget=st.integers(1, 20),
    arrivals=st.lists(st.booleans(), max_size=60),
    aborts=st.lists(st.tuples(st.integers(0, 60), st.integers(0, 19)), max_size=5),
    forgotten=st.lists(st.tuples(st.integers(0, 60), st.integers(0, 19)), max_size=3),
)
def test_every_block_holds_what_its_sequence_reads(
    prompts: list[tuple[int, int, int]],
    block_count: int,
    slot_count: int,
    budget: int,
    arrivals: list[bool],
    aborts: list[tuple[int, int]],
    forgotten: list[tuple[int, int]],
) -> None:
    scheduler, contents = _scheduler(block_count, slot_count, budget)
    sequences = [
        _sequence([kind, *_prompt(20, length - 1)], max_tokens, arrival=index)
        for index, (kind, length, max_tokens) in enumerate(prompts)
    ]
    to_come = sequences[::-1]
    step = 0
    while to_come or scheduler.has_work:
        if to_come and step % 2 == 0:
            scheduler.add(to_come.pop())
        present = len(sequences) - len(to_come)
        for at, index in aborts:
            if at == step and index < present:
                _abort(scheduler, sequences[index])
        for at, index in forgotten:
            if at == step and index < present:
                scheduler.blocks.forget(sequences[index])
        if step < len(arrivals) and arrivals[step]:
            contents.arrive()
        assert not scheduler.has_work or _step(scheduler, contents)
        load = _load(scheduler)
        assert 0 <= load.used_token_count <= load.total_token_count == slot_count * BLOCK_SIZE
        step += 1
    assert scheduler.blocks.free_count == block_count
    assert all(sequence.status is Status.FINISHED for sequence in sequences)


def _abort(scheduler: Scheduler, sequence: Sequence) -> None:
    if sequence.status is not Status.FINISHED:
        scheduler.finish(sequence)


def test_what_the_kv_cache_drops_is_found_in_host_memory() -> None:
    scheduler, contents = _scheduler(block_count=5, slot_count=20)
    assert _run(scheduler, contents, _sequence(_prompt(10))) == 0
    assert _run(scheduler, contents, _sequence(_prompt(30))) == 0
    assert _load(scheduler) == HostCacheLoad(6, 40, 0, 0)  # the first block is where it was
    assert _run(scheduler, contents, _sequence([*_prompt(10), 1])) == 8
    assert _load(scheduler) == HostCacheLoad(14, 40, 6, 0)
    assert _run(scheduler, contents, _sequence([*_prompt(30), 1])) == 8
    # But for the first block, the first prompt's were there already.
    assert (contents.saved_count, _load(scheduler).loaded_token_count) == (8, 14)


def test_a_prefix_comes_from_both_caches() -> None:
    scheduler, contents = _scheduler(block_count=9, slot_count=20)
    _run(scheduler, contents, _sequence(_prompt(10)))
    _run(scheduler, contents, _sequence(_prompt(30, 13)))  # takes two of the first one's blocks
    assert contents.saved_count == 2
    assert _run(scheduler, contents, _sequence([*_prompt(10), 1])) == 8
    assert _load(scheduler).loaded_token_count == 4


def test_another_salt_and_another_image_find_nothing() -> None:
    scheduler, contents = _scheduler(block_count=5, slot_count=20)
    _run(scheduler, contents, _sequence(_prompt(10), salt="a"))
    _run(scheduler, contents, _sequence(_prompt(30)))
    assert _run(scheduler, contents, _sequence(_prompt(10), salt="b")) == 0
    assert _run(scheduler, contents, _sequence(_prompt(10), salt="a")) == 6


def test_the_least_recently_used_goes_first_and_of_a_prefix_its_end() -> None:
    scheduler, contents = _scheduler(block_count=5, slot_count=6)
    for first in (10, 30, 50):
        _run(scheduler, contents, _sequence(_prompt(first)))
    assert _load(scheduler) == HostCacheLoad(12, 12, 0, 2)
    assert _run(scheduler, contents, _sequence([*_prompt(10), 1])) == 6


def test_what_is_used_again_stays() -> None:
    scheduler, contents = _scheduler(block_count=5, slot_count=8)
    for first in (10, 30, 10, 50, 70):  # the first is loaded, and dropped again
        _run(scheduler, contents, _sequence(_prompt(first)))
    found = [scheduler.blocks.cached_count(_sequence([*_prompt(first), 1])) for first in (10, 30)]
    assert found == [8, 2]


def test_of_a_loaded_prefix_the_end_goes_first() -> None:
    scheduler, contents = _scheduler(block_count=5, slot_count=5)
    for first in (10, 30, 10):
        _run(scheduler, contents, _sequence([*_prompt(first), 1]))
    cache = scheduler.blocks.host_cache
    assert cache is not None
    digests = [_sequence(_prompt(10)).block_digest(index, BLOCK_SIZE) for index in range(4)]
    held = [digest in cache for digest in digests if digest is not None]
    assert held == [True] * 4
    cache.save([(b"other", 0), (b"another", 1)])
    held = [digest in cache for digest in digests if digest is not None]
    assert held == [True, True, False, False]


def test_blocks_that_are_loaded_are_not_overwritten_by_those_that_they_replace() -> None:
    scheduler, contents = _scheduler(block_count=5, slot_count=4)  # room for one prompt alone
    prompts = [[*_prompt(first), 1] for first in (10, 30, 10)]
    counts = [_run(scheduler, contents, _sequence(prompt)) for prompt in prompts]
    assert counts == [0, 0, 8]
    assert _load(scheduler) == HostCacheLoad(8, 8, 8, 2)


def test_a_forgotten_block_is_forgotten_in_host_memory_too() -> None:
    scheduler, contents = _scheduler(block_count=5, slot_count=20)
    broken = _sequence(_prompt(10))
    _run(scheduler, contents, broken)
    _run(scheduler, contents, _sequence(_prompt(30)))
    assert _load(scheduler).used_token_count == 6
    scheduler.blocks.forget(broken)
    assert _load(scheduler).used_token_count == 0
    assert _run(scheduler, contents, _sequence([*_prompt(10), 1])) == 0


def test_others_go_on_while_blocks_arrive_and_who_shares_them_waits_too() -> None:
    scheduler, contents = _scheduler(block_count=20, slot_count=20)
    _run(scheduler, contents, _sequence(_prompt(10)))
    _run(scheduler, contents, _sequence([1] * 39))
    writing = _sequence([2] * 3, 30, arrival=1)
    scheduler.add(writing)
    _step(scheduler, contents)
    first, second = (_sequence([*_prompt(10), 1], 2, arrival=n) for n in (2, 3))
    for sequence in (first, second):
        scheduler.add(sequence)
    assert [_step(scheduler, contents) for _ in range(3)] == [[writing]] * 3
    assert (first.cached_count, second.cached_count) == (8, 8)
    assert first.block_table[:4] == second.block_table[:4]
    contents.arrive()
    assert _step(scheduler, contents) == [writing, first, second]


def test_a_prompt_that_is_read_does_not_wait_for_a_shorter_one_that_arrives() -> None:
    scheduler, contents = _scheduler(block_count=40, slot_count=40, budget=6)
    _run(scheduler, contents, _sequence(_prompt(10)))
    _run(scheduler, contents, _sequence([1] * 79))
    long, short = _sequence([2] * 30, arrival=1), _sequence([*_prompt(10), 1], 2, arrival=2)
    scheduler.add(long)
    _step(scheduler, contents)
    scheduler.add(short)
    assert [_step(scheduler, contents) for _ in range(2)] == [[long]] * 2
    assert short.status is Status.RUNNING
    contents.arrive()
    assert short in _step(scheduler, contents)


def test_where_nobody_else_goes_on_the_step_waits_for_the_blocks() -> None:
    scheduler, contents = _scheduler(block_count=5, slot_count=20)
    for first in (10, 30):
        _run(scheduler, contents, _sequence(_prompt(first)))
    late = _sequence([*_prompt(10), 1])
    scheduler.add(late)
    assert _step(scheduler, contents) == [late]
    assert [arrival.has_come for arrival in contents.arrivals] == [True]


def test_the_blocks_of_one_that_is_aborted_while_they_arrive_can_be_anybodys() -> None:
    scheduler, contents = _scheduler(block_count=12, slot_count=20)
    _run(scheduler, contents, _sequence(_prompt(10)))
    _run(scheduler, contents, _sequence([1] * 23))
    writing = _sequence([2] * 3, 9, arrival=1)
    scheduler.add(writing)
    _step(scheduler, contents)
    late = _sequence([*_prompt(10), 1], 2, arrival=2)
    scheduler.add(late)
    assert _step(scheduler, contents) == [writing]
    assert late.status is Status.RUNNING
    scheduler.finish(late)
    heir = _sequence([3] * 14, 2, arrival=3)
    scheduler.add(heir)
    while scheduler.has_work:
        assert _step(scheduler, contents)
        contents.arrive()
    assert heir.finish_reason == writing.finish_reason == "length"


@pytest.mark.parametrize(("block_count", "count", "preemption_count"), [(10, 14, 0), (8, 11, 1)])
def test_a_preempted_sequence_comes_back_from_host_memory(
    block_count: int, count: int, preemption_count: int
) -> None:
    scheduler, contents = _scheduler(block_count=block_count, slot_count=20, max_running=2)
    first, second = _sequence(_prompt(10, 5), count), _sequence(_prompt(30, 9), 3, arrival=1)
    for sequence in (first, second):
        scheduler.add(sequence)
    while scheduler.has_work:
        assert _step(scheduler, contents)
        contents.arrive()
    assert scheduler.preemption_count == preemption_count
    if preemption_count:
        assert second.shared_count >= 8
        assert _load(scheduler).loaded_token_count > 0


@pytest.mark.parametrize("slot_count", [20, 1])
def test_rows_that_are_not_held_are_needed_once_no_cache_has_them(slot_count: int) -> None:
    scheduler, contents = _scheduler(block_count=6, slot_count=slot_count)
    token_ids = [1, 2, *range(100, 106), 3, 4]
    image = ImageRows(embedding_id("cat"), 6)
    held = Prompt(token_ids, torch.empty(6, 1), (image,))
    unheld = Prompt(token_ids, torch.empty(6, 1), (ImageRows(image.embedding_id, 6, False),))
    _run(scheduler, contents, Sequence(held, SamplingParams(), 1, VOCABULARY_SIZE))
    _run(scheduler, contents, _sequence(_prompt(30, 11)))
    again = Sequence(unheld, SamplingParams(), 1, VOCABULARY_SIZE)
    scheduler.add(again)
    scheduled = _step(scheduler, contents)
    if slot_count == 1:
        assert (scheduled, scheduler.take_unreadable()) == ([], [again])
    else:
        assert (scheduled, again.cached_count) == ([again], 8)
