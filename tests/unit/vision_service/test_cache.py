"""The embedding cache: the byte bound, the order of eviction, and encodes that are shared."""

from __future__ import annotations

import asyncio

import pytest
import torch

from protos.errors import OverloadedError
from protos.identity import EmbeddingId
from vision_service.cache import EmbeddingCache
from vision_service.embedding import ImageEmbedding, Timings
from vision_service.tiling import Grid

ROW_BYTES = 16


def id_of(name: str) -> EmbeddingId:
    return EmbeddingId(name.encode(), b"recipe")


def embedding(name: str) -> ImageEmbedding:
    rows = torch.zeros(1, ROW_BYTES // 4)
    crc32 = asyncio.get_running_loop().create_future()
    return ImageEmbedding(id_of(name), rows, crc32, Grid(1, 1), 2, 2, Timings())


class Encodes:
    """Makes embeddings when `gate` is open, and counts what it was asked for."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.cancelled: list[str] = []
        self.started = asyncio.Event()
        self.gate = asyncio.Event()
        self.gate.set()

    async def make(self, name: str) -> ImageEmbedding:
        self.names.append(name)
        self.started.set()
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled.append(name)
            raise
        return embedding(name)

    async def through(self, cache: EmbeddingCache, name: str) -> bool:
        """Returns whether the cache had it."""
        found, hit = await cache.get_or_encode(id_of(name), lambda: self.make(name))
        assert found.id == id_of(name)
        return hit


async def test_the_second_request_is_a_hit() -> None:
    cache, encodes = EmbeddingCache(10 * ROW_BYTES), Encodes()
    assert [await encodes.through(cache, "a"), await encodes.through(cache, "a")] == [False, True]
    assert encodes.names == ["a"]


async def test_the_least_recently_used_goes_first() -> None:
    cache, encodes = EmbeddingCache(2 * ROW_BYTES), Encodes()
    for name in ("a", "b", "a", "c"):  # a is younger than b when c needs room
        await encodes.through(cache, name)
    assert [await encodes.through(cache, name) for name in ("a", "c", "b")] == [True, True, False]


async def test_what_exceeds_the_bound_alone_is_not_kept() -> None:
    cache, encodes = EmbeddingCache(ROW_BYTES - 1), Encodes()
    await encodes.through(cache, "a")
    assert not await encodes.through(cache, "a")


async def test_requests_at_the_same_time_share_one_encode() -> None:
    cache, encodes = EmbeddingCache(10 * ROW_BYTES), Encodes()
    hits = await asyncio.gather(*(encodes.through(cache, "a") for _ in range(3)))
    assert (hits, encodes.names) == ([False] * 3, ["a"])


async def test_one_of_two_may_leave() -> None:
    cache, encodes = EmbeddingCache(10 * ROW_BYTES), Encodes()
    encodes.gate.clear()
    leaving, staying = (asyncio.create_task(encodes.through(cache, "a")) for _ in range(2))
    await asyncio.sleep(0)
    leaving.cancel()
    await asyncio.wait([leaving])
    encodes.gate.set()
    assert await staying is False
    assert (leaving.cancelled(), encodes.cancelled) == (True, [])


async def test_when_the_last_leaves_the_encode_is_cancelled() -> None:
    cache, encodes = EmbeddingCache(10 * ROW_BYTES), Encodes()
    encodes.gate.clear()
    leaving = [asyncio.create_task(encodes.through(cache, "a")) for _ in range(2)]
    await encodes.started.wait()
    for task in leaving:
        task.cancel()
    await asyncio.wait(leaving)
    # A request that comes before the cancelled encode has ended starts its own.
    encodes.gate.set()
    assert not await encodes.through(cache, "a")
    assert (encodes.names, encodes.cancelled) == (["a", "a"], ["a"])


async def test_a_failure_reaches_all_and_is_not_kept() -> None:
    cache, encodes = EmbeddingCache(10 * ROW_BYTES), Encodes()

    async def fail() -> ImageEmbedding:
        raise OverloadedError("full")

    requests = [cache.get_or_encode(id_of("a"), fail) for _ in range(2)]
    outcomes = await asyncio.gather(*requests, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [OverloadedError, OverloadedError]
    with pytest.raises(OverloadedError):
        await cache.get_or_encode(id_of("a"), fail)
    assert not await encodes.through(cache, "a")
