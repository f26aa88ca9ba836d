from __future__ import annotations

import pytest
import torch

from llm_service.tables import TableCache
from protos.errors import OverloadedError
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
