from __future__ import annotations

import sys
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from llm_service.table_arena import NO_ARENA
from llm_service.tables import (
    TableCache,
    TableSpec,
    TableUpload,
    joined_tables,
)
from protos.errors import OverloadedError
from protos.transport import MAX_CHUNK_BYTE_COUNT
from tests.embedding_ids import embedding_id

A, B, C = map(embedding_id, "abc")


def table(value: int) -> torch.Tensor:
    """Returns a table of 10 bytes."""
    return torch.full((10, 1), value, dtype=torch.uint8)


def test_least_recently_used_table_goes_first() -> None:
    cache = TableCache(20)
    cache.put(A, table(1))
    cache.put(B, table(2))
    assert cache.get(A) is not None  # now b is the older one
    cache.put(C, table(3))
    assert cache.get(B) is None
    assert cache.get(A) is not None
    assert cache.get(C) is not None


def test_first_table_of_an_id_stays() -> None:
    cache = TableCache(20)
    first = table(1)
    cache.put(A, first)
    cache.put(A, table(2))
    assert cache.get(A) is first
    cache.put(B, table(3))
    assert cache.get(A) is first  # the second one took no room


def test_table_larger_than_the_cache_is_not_kept() -> None:
    cache = TableCache(9)
    cache.put(A, table(1))
    assert cache.get(A) is None


def test_rows_of_a_table_are_known_when_it_has_gone() -> None:
    cache = TableCache(10)
    assert cache.row_count(A) is None
    cache.put(A, table(1))
    assert cache.row_count(A) == 10
    cache.put(B, table(2)[:3])
    assert cache.get(A) is None
    assert (cache.row_count(A), cache.row_count(B)) == (10, 3)


def test_of_the_tables_that_have_gone_the_least_recently_asked_for_is_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("llm_service.tables.REMEMBERED_TABLE_COUNT", 2)
    cache = TableCache(0)
    cache.put(A, table(1))
    cache.put(B, table(2))
    assert cache.row_count(A) == 10  # now b is the older one
    cache.put(C, table(3))
    assert [cache.row_count(image) for image in (A, B, C)] == [10, None, 10]


def test_reservations_are_bounded_and_given_back() -> None:
    cache = TableCache(20)
    cache.reserve(20)
    with pytest.raises(OverloadedError, match="1 more would pass the limit of 20"):
        cache.reserve(1)
    cache.release(20)
    cache.reserve(20)


def test_chunks_become_the_table() -> None:
    rows = torch.randn(3000, 8)
    data = memoryview(rows.numpy().tobytes())
    upload = TableUpload(TableSpec(torch.float32, (3000, 8), len(data)))
    for begin in range(0, len(data), 10_007):
        upload.add(begin, data[begin : begin + 10_007])
    assert torch.equal(upload.finish(zlib.crc32(data)), rows)


@contextmanager
def counting_thread() -> Iterator[list[int]]:
    """Yields a number that another thread counts up whenever somebody lets go of the lock."""
    count, stopping = [0], threading.Event()

    def run() -> None:
        while not stopping.is_set():
            count[0] += 1
            time.sleep(0)  # lets go of it

    interval = sys.getswitchinterval()
    thread = threading.Thread(target=run)
    thread.start()
    sys.setswitchinterval(60)  # nobody has to let go of it
    try:
        yield count
    finally:
        sys.setswitchinterval(interval)
        stopping.set()
        thread.join()


def copies_beside(data: memoryview) -> int:
    """Returns during how many of some hundred copies another thread has run."""
    table_byte_count, seen = 64 * MAX_CHUNK_BYTE_COUNT, 0
    with counting_thread() as count:
        for _ in range(8):
            upload = TableUpload(TableSpec(torch.uint8, (64, len(data)), table_byte_count))
            for index in range(64):
                before = count[0]
                upload.add(index * len(data), data)
                seen += count[0] != before
    return seen


def test_a_copy_lets_go_of_the_interpreters_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine's thread needs it. The checksum, which lets go of it as well, is left out."""
    monkeypatch.setattr("llm_service.tables.isal_zlib.crc32", lambda data, crc32: crc32)
    assert copies_beside(memoryview(bytes(MAX_CHUNK_BYTE_COUNT)))


@pytest.mark.parametrize("dtypes", [["float32"] * 3, ["bfloat16", "float32", "float16"]])
def test_joined_tables_are_those_that_pytorch_joins(dtypes: list[str]) -> None:
    tables = [torch.randn(rows, 4).to(getattr(torch, name)) for rows, name in enumerate(dtypes, 2)]
    joined = joined_tables(tables, NO_ARENA)
    assert joined.dtype == torch.cat(tables).dtype
    assert torch.equal(joined, torch.cat(tables))


def test_one_table_is_not_copied() -> None:
    only = table(1)
    assert joined_tables([only], NO_ARENA) is only
