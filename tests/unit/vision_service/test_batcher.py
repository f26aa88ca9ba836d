"""The tile batcher: what joins a batch, what is refused, what a cancel and a dead engine do."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import pytest
import torch

from protos.errors import EngineDeadError, OverloadedError
from tests.unit.vision_service.fakes import HIDDEN_SIZE, TOKENS_PER_TILE, FakeEngine, tiles_of
from tests.unit.vision_service.linked import linked
from vision_service.batcher import EncodedTiles, TileBatcher
from vision_service.engines.base import VisionEngine
from vision_service.engines.process.messages import SlotLayout


@pytest.fixture(params=["here", "linked"], autouse=True)
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Has all tests run with the engine in this process, and with one behind a link."""
    if request.param == "linked":
        monkeypatch.setattr(sys.modules[__name__], "placed", behind_a_link)


@contextmanager
def placed(engine: FakeEngine, max_batch: int) -> Iterator[VisionEngine]:
    yield engine


@contextmanager
def behind_a_link(engine: FakeEngine, max_batch: int) -> Iterator[VisionEngine]:
    layout = SlotLayout(max_batch, 2, TOKENS_PER_TILE, HIDDEN_SIZE, "float32")
    with linked(engine, layout) as remote:
        yield remote


@asynccontextmanager
async def running_batcher(
    engine: FakeEngine, max_batch: int = 8, max_queued: int = 16
) -> AsyncIterator[TileBatcher]:
    with placed(engine, max_batch) as used:
        batcher = TileBatcher(
            used, max_batch_tile_count=max_batch, max_queued_tile_count=max_queued
        )
        async with batcher:
            try:
                yield batcher
            finally:
                engine.gate.set()


async def submitted(batcher: TileBatcher, *values: int) -> asyncio.Task[EncodedTiles]:
    """Returns the task of an image whose tiles are in the batcher's queue."""
    task = asyncio.create_task(batcher.encode(tiles_of(*values)))
    await asyncio.sleep(0)
    return task


async def occupied(batcher: TileBatcher, engine: FakeEngine) -> asyncio.Task[EncodedTiles]:
    """Returns the task of a one-tile image that the engine holds at its gate."""
    engine.gate.clear()
    task = await submitted(batcher, 0)
    await asyncio.to_thread(engine.entered.wait)
    return task


def values_of(encoded: EncodedTiles) -> list[float]:
    assert encoded.embeddings.shape[1:] == (TOKENS_PER_TILE, HIDDEN_SIZE)
    return encoded.embeddings[:, 0, 0].tolist()


async def test_an_idle_engine_takes_an_image_at_once() -> None:
    engine = FakeEngine()
    async with running_batcher(engine) as batcher:
        encoded = await batcher.encode(tiles_of(5, 6, 7))
    assert values_of(encoded) == [5, 6, 7]
    assert engine.batch_tile_counts == [3]
    assert encoded.forward_seconds > 0
    assert encoded.queue_seconds >= 0


async def test_images_that_wait_share_the_next_batch() -> None:
    engine = FakeEngine()
    async with running_batcher(engine) as batcher:
        first = await occupied(batcher, engine)
        others = [await submitted(batcher, 1, 2), await submitted(batcher, 3)]
        engine.gate.set()
        results = await asyncio.gather(first, *others)
    assert [values_of(result) for result in results] == [[0], [1, 2], [3]]
    assert engine.batch_tile_counts == [1, 3]


async def test_no_batch_exceeds_the_cap_and_an_image_may_be_split() -> None:
    engine = FakeEngine()
    async with running_batcher(engine, max_batch=4) as batcher:
        first = await occupied(batcher, engine)
        large = await submitted(batcher, *range(10, 20))
        small = await submitted(batcher, 1)
        engine.gate.set()
        await first
        assert values_of(await large) == list(range(10, 20))
        assert values_of(await small) == [1]
    assert engine.batch_tile_counts == [1, 4, 4, 3]


async def test_a_busy_engine_has_one_full_batch_behind_it() -> None:
    engine = FakeEngine()
    async with running_batcher(engine, max_batch=4) as batcher:
        engine.gate.clear()
        image = await submitted(batcher, *range(13))
        for _ in range(2):
            assert await asyncio.to_thread(engine.submissions.get) == 4
        engine.gate.set()
        assert values_of(await image) == list(range(13))
    assert engine.batch_tile_counts == [4, 4, 4, 1]


async def test_a_busy_engine_gets_no_batch_that_may_still_grow() -> None:
    engine = FakeEngine()
    async with running_batcher(engine, max_batch=4, max_queued=64) as batcher:
        engine.gate.clear()
        first = await submitted(batcher, *range(7))
        assert await asyncio.to_thread(engine.submissions.get) == 4
        others = [await submitted(batcher, 20), await submitted(batcher, 21, 22)]
        engine.gate.set()
        await asyncio.gather(first, *others)
    assert engine.batch_tile_counts == [4, 4, 2]


async def test_a_cancelled_image_fills_no_batch() -> None:
    engine = FakeEngine()
    async with running_batcher(engine, max_batch=4) as batcher:
        first = await occupied(batcher, engine)
        cancelled, other = await submitted(batcher, 1, 2, 3), await submitted(batcher, 4, 5)
        cancelled.cancel()
        engine.gate.set()
        await first
        assert values_of(await other) == [4, 5]
    assert engine.batch_tile_counts == [1, 2]


async def test_encoded_and_padding_tiles_are_counted() -> None:
    engine = FakeEngine()
    async with running_batcher(engine, max_batch=4) as batcher:
        await batcher.encode(tiles_of(*range(6)))
        assert (batcher.encoded_tile_count, batcher.padding_tile_count) == (6, 2)


async def test_a_result_does_not_keep_its_batch_in_memory() -> None:
    engine = FakeEngine()
    async with running_batcher(engine) as batcher:
        first = await occupied(batcher, engine)
        small, _ = await submitted(batcher, 1), await submitted(batcher, 2, 3, 4)
        engine.gate.set()
        await first
        embeddings = (await small).embeddings
    assert embeddings.untyped_storage().nbytes() == embeddings.nbytes


async def test_an_image_that_is_not_finite_is_told_from_its_batch() -> None:
    engine = FakeEngine()
    engine.poison = 5.0
    async with running_batcher(engine, max_batch=4) as batcher:
        first = await occupied(batcher, engine)
        others = [await submitted(batcher, *values) for values in ((1, 2), (3, 4, 5, 6, 7), (8,))]
        engine.gate.set()
        results = await asyncio.gather(first, *others)
    assert [result.is_finite for result in results] == [True, True, False, True]


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory."),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
    ],
    ids=["gpu", "host", "python"],
)
async def test_a_batch_without_memory_ends_its_images_and_not_the_engine(error: Exception) -> None:
    engine = FakeEngine()
    async with running_batcher(engine, max_batch=4) as batcher:
        first = await occupied(batcher, engine)
        engine.submit_error = error  # first: the second batch may begin as soon as it is full
        others = [await submitted(batcher, *values) for values in ((1, 2), (3, 4, 5), (6,))]
        engine.gate.set()
        *ended, last = await asyncio.gather(*others, return_exceptions=True)
        assert values_of(await first) == [0]
        for refusal in ended:
            assert isinstance(refusal, OverloadedError)
            assert "no memory for a batch of 4 tiles" in refusal.message
        assert isinstance(last, EncodedTiles)
        assert values_of(last) == [6]
        assert values_of(await batcher.encode(tiles_of(7))) == [7]


async def test_a_full_queue_refuses_with_both_numbers() -> None:
    engine = FakeEngine()
    async with running_batcher(engine, max_queued=4) as batcher:
        first = await occupied(batcher, engine)
        fitting = await submitted(batcher, 1, 2, 3)
        with pytest.raises(
            OverloadedError, match="4 tiles wait .* has 1; the limit is 4"
        ) as caught:
            await batcher.encode(tiles_of(9))
        assert caught.value.retry_after is not None
        engine.gate.set()
        await asyncio.gather(first, fitting)
        assert values_of(await batcher.encode(tiles_of(9))) == [9]


async def test_a_cancelled_image_leaves_the_queue() -> None:
    engine = FakeEngine()
    async with running_batcher(engine, max_queued=4) as batcher:
        first = await occupied(batcher, engine)
        cancelled = await submitted(batcher, 1, 2, 3)
        cancelled.cancel()
        engine.gate.set()
        await first
        assert values_of(await batcher.encode(tiles_of(4))) == [4]
        # Room for four again: the cancelled tiles no longer count.
        assert values_of(await batcher.encode(tiles_of(5, 6, 7, 8))) == [5, 6, 7, 8]
    assert sum(engine.batch_tile_counts) == 1 + 1 + 4


async def test_an_image_cancelled_in_the_engine_harms_no_other() -> None:
    engine = FakeEngine()
    async with running_batcher(engine) as batcher:
        first = await occupied(batcher, engine)
        other = await submitted(batcher, 7)
        first.cancel()
        engine.gate.set()
        assert values_of(await other) == [7]
        assert batcher.is_healthy()


async def test_a_failing_engine_fails_every_image_and_health() -> None:
    engine = FakeEngine()
    engine.error = RuntimeError("out of order")
    async with running_batcher(engine) as batcher:
        assert batcher.is_healthy()
        images = [await occupied(batcher, engine), await submitted(batcher, 1, 2)]
        engine.gate.set()
        for image in images:
            with pytest.raises(EngineDeadError):
                await image
        assert not batcher.is_healthy()
        with pytest.raises(EngineDeadError):
            await batcher.encode(tiles_of(3))
    assert engine.batch_tile_counts == [1]


async def test_closing_finishes_what_the_engine_has_and_ends_what_waits() -> None:
    engine = FakeEngine()
    with placed(engine, 8) as used:
        batcher = TileBatcher(used, max_batch_tile_count=8, max_queued_tile_count=16)
        async with batcher:
            first = await occupied(batcher, engine)
            waiting = await submitted(batcher, 1)  # no full batch: it stays where it may grow
            # Leaving the block asks for the end before the loop comes to this.
            asyncio.get_running_loop().call_soon(engine.gate.set)
    assert values_of(await first) == [0]
    with pytest.raises(EngineDeadError):
        await waiting


async def test_embeddings_have_the_engine_dtype() -> None:
    engine = FakeEngine()
    async with running_batcher(engine) as batcher:
        assert (await batcher.encode(tiles_of(1))).embeddings.dtype == torch.float32
