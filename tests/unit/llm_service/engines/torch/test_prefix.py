"""Prefix reuse: what may be shared, what must not, and that the numbers are exact."""

from __future__ import annotations

import torch

from llm_service.engines.base import ImageRows, Prompt
from llm_service.engines.torch.block_manager import BlockManager
from llm_service.engines.torch.scheduler import Scheduler
from llm_service.engines.torch.sequence import Sequence, Status
from llm_service.sampling import SamplingParams
from tests.embedding_ids import embedding_id

VOCABULARY_SIZE = 100
BLOCK_SIZE = 4
ROWS = 6
# Three ids of text, the rows of two images, and a question.
TOKEN_IDS = [1, 2, 3, *range(100, 100 + 2 * ROWS), 4, 5, 6]
IMAGES = (ImageRows(embedding_id("cat"), ROWS), ImageRows(embedding_id("dog"), ROWS))


def _prompt(
    token_ids: list[int] = TOKEN_IDS, images: tuple[ImageRows, ...] = IMAGES, salt: str = ""
) -> Prompt:
    return Prompt(token_ids, torch.empty(2 * ROWS, 1), images, salt)


def _scheduler(block_count: int = 50, budget: int = 100) -> Scheduler:
    return Scheduler(BlockManager(block_count, BLOCK_SIZE), budget, max_running_count=4)


def _sequence(prompt: Prompt, max_tokens: int = 1) -> Sequence:
    return Sequence(prompt, SamplingParams(), max_tokens, VOCABULARY_SIZE)


def _run(scheduler: Scheduler, sequence: Sequence, token_id: int = 9) -> int | None:
    """Runs one sequence to its end; returns how many tokens it found in the cache."""
    scheduler.add(sequence)
    while scheduler.has_work:
        for scheduled in scheduler.schedule():
            scheduled.mark_launched()
            if scheduled.pending_count:
                scheduled.append(token_id)
            if scheduled.finish_reason is not None:
                scheduler.finish(scheduled)
    return sequence.cached_count


def _second(first: Prompt, second: Prompt) -> int | None:
    scheduler = _scheduler()
    assert _run(scheduler, _sequence(first)) == 0
    return _run(scheduler, _sequence(second))


def test_the_same_prompt_is_found_up_to_the_block_before_its_last_token() -> None:
    assert len(TOKEN_IDS) == 18
    assert _second(_prompt(), _prompt()) == 16


def test_one_token_is_always_left_to_compute() -> None:
    assert _second(_prompt(TOKEN_IDS[:16]), _prompt(TOKEN_IDS[:16])) == 12


def test_a_longer_prompt_begins_with_what_the_shorter_one_left() -> None:
    assert _second(_prompt(), _prompt([*TOKEN_IDS, *range(10, 40)])) == 16


def test_the_output_is_part_of_the_next_turns_prefix() -> None:
    scheduler = _scheduler()
    _run(scheduler, _sequence(_prompt(), max_tokens=8), token_id=9)
    # The last token's keys and values were never computed.
    assert _run(scheduler, _sequence(_prompt([*TOKEN_IDS, *[9] * 8, 7]))) == 24


def test_another_image_shares_only_what_comes_before_it() -> None:
    other_second = (IMAGES[0], ImageRows(embedding_id("cow"), ROWS))
    assert _second(_prompt(), _prompt(images=other_second)) == 8
    other_first = (ImageRows(embedding_id("cow"), ROWS), IMAGES[1])
    assert _second(_prompt(), _prompt(images=other_first)) == 0


def test_images_in_another_order_are_other_images() -> None:
    assert _second(_prompt(), _prompt(images=IMAGES[::-1])) == 0


def test_rows_divided_between_images_in_another_way_are_others() -> None:
    divided = (ImageRows(embedding_id("cat"), ROWS + 3), ImageRows(embedding_id("dog"), ROWS - 3))
    # Three of text and the first five rows are the same image's in both.
    assert _second(_prompt(), _prompt(images=divided)) == 8


def test_rows_without_an_image_are_never_shared() -> None:
    assert _second(_prompt(images=()), _prompt(images=())) == 0
    assert _second(_prompt(images=IMAGES[:1]), _prompt(images=IMAGES[:1])) == 8


def test_another_salt_shares_nothing() -> None:
    assert _second(_prompt(salt="a"), _prompt(salt="b")) == 0
    assert _second(_prompt(salt="a"), _prompt(salt="a")) == 16


def test_choices_of_one_prompt_share_one_prefill() -> None:
    scheduler = _scheduler(budget=10)
    sequences = [_sequence(_prompt()) for _ in range(3)]
    for sequence in sequences:
        scheduler.add(sequence)
    counts = []
    while scheduler.has_work:
        scheduled = scheduler.schedule()
        counts.append([(sequences.index(item), item.scheduled_count) for item in scheduled])
        for item in scheduled:
            item.mark_launched()
            if item.pending_count:
                item.append(9)
                scheduler.finish(item)
    # The second and the third are admitted to the step that completes the first.
    assert counts == [[(0, 10)], [(0, 8), (1, 2)], [(2, 2)]]


def test_free_blocks_are_reused_oldest_first_and_their_contents_forgotten() -> None:
    scheduler = _scheduler(block_count=10)
    _run(scheduler, _sequence(_prompt(salt="old")))
    _run(scheduler, _sequence(_prompt(salt="new")))
    assert scheduler.blocks.free_count == 10
    # Five blocks: the two that hold no full block go first, then the old prompt's last ones.
    _run(scheduler, _sequence(Prompt([7] * 19, torch.empty(0, 1)), max_tokens=1))
    assert _run(scheduler, _sequence(_prompt(salt="old"))) == 4
    assert scheduler.blocks.free_count == 10


def test_a_shared_block_is_free_only_when_both_have_ended() -> None:
    scheduler = _scheduler()
    first, second = _sequence(_prompt(), 5), _sequence(_prompt(), 5)
    for sequence in (first, second):
        scheduler.add(sequence)
    scheduler.schedule()
    assert second.block_table[:4] == first.block_table[:4]
    assert scheduler.blocks.free_count == 50 - 5 - 1
    scheduler.finish(first)
    assert scheduler.blocks.free_count == 50 - 5
    scheduler.finish(second)
    assert scheduler.blocks.free_count == 50


def test_a_preempted_sequence_finds_its_own_blocks_again() -> None:
    scheduler = _scheduler(block_count=9)
    first = Sequence(_prompt(salt="a"), SamplingParams(), 20, VOCABULARY_SIZE, order=(0, 0))
    second = Sequence(_prompt(salt="b"), SamplingParams(), 3, VOCABULARY_SIZE, order=(0, 1))
    for sequence in (first, second):
        scheduler.add(sequence)
    assert scheduler.schedule() == [first]  # five and five blocks do not fit into nine
    first.mark_launched()
    first.append(9)
    scheduler.finish(first)
    assert scheduler.schedule() == [second]
    second.mark_launched()
    second.append(9)
    scheduler._preempt(second)
    assert second.block_table.tolist() == []
    assert scheduler.schedule() == [second]
    assert (second.cached_count, second.computed_count, second.scheduled_count) == (0, 16, 3)


def test_higher_priority_is_admitted_first() -> None:
    scheduler = Scheduler(BlockManager(50, BLOCK_SIZE), 100, max_running_count=1)
    low, high = (
        Sequence(_prompt(), SamplingParams(), 1, VOCABULARY_SIZE, order=(-priority, arrival))
        for arrival, priority in enumerate((0, 5))
    )
    scheduler.add(low)
    scheduler.add(high)
    assert scheduler.schedule() == [high]


def _without_rows(*held: bool) -> tuple[ImageRows, ...]:
    return tuple(
        ImageRows(image.embedding_id, image.row_count, is_held)
        for image, is_held in zip(IMAGES, held, strict=True)
    )


def test_rows_are_not_needed_where_the_cache_holds_what_they_became() -> None:
    long = [*TOKEN_IDS, 7, 8, 9]  # the last full block ends behind the second image
    scheduler = _scheduler()
    _run(scheduler, _sequence(_prompt(long)))
    sequence = _sequence(_prompt(long, images=_without_rows(False, False)))
    assert sequence.required_count == 15
    assert _run(scheduler, sequence) == 20
    assert scheduler.take_unreadable() == []


def test_a_prompt_without_rows_ends_where_the_cache_does_not_hold_them() -> None:
    scheduler = _scheduler()
    _run(scheduler, _sequence(_prompt(TOKEN_IDS[:12])))  # up to within the second image
    unreadable = _sequence(_prompt(images=_without_rows(True, False)))
    scheduler.add(unreadable)
    assert scheduler.schedule() == []
    assert scheduler.take_unreadable() == [unreadable]
    assert unreadable.status is Status.FINISHED
    assert not scheduler.has_work
    readable = _sequence(_prompt(images=_without_rows(False, True)))
    assert readable.required_count == 9
    assert _run(scheduler, readable) == 12
