from __future__ import annotations

import pytest
import torch

from llm_service.tables import TableCache
from protos.errors import OverloadedError


def table(value: int) -> torch.Tensor:
    """Returns a table of 10 bytes."""
    return torch.full((10, 1), value, dtype=torch.uint8)


def test_least_recently_used_table_goes_first() -> None:
    cache = TableCache(20)
    cache.put(b"a", table(1))
    cache.put(b"b", table(2))
    assert cache.get(b"a") is not None  # now b is the older one
    cache.put(b"c", table(3))
    assert cache.get(b"b") is None
    assert cache.get(b"a") is not None
    assert cache.get(b"c") is not None


def test_first_table_of_an_id_stays() -> None:
    cache = TableCache(20)
    first = table(1)
    cache.put(b"a", first)
    cache.put(b"a", table(2))
    assert cache.get(b"a") is first
    cache.put(b"b", table(3))
    assert cache.get(b"a") is first  # the second one took no room


def test_table_larger_than_the_cache_is_not_kept() -> None:
    cache = TableCache(9)
    cache.put(b"a", table(1))
    assert cache.get(b"a") is None


def test_reservations_are_bounded_and_given_back() -> None:
    cache = TableCache(20)
    cache.reserve(20)
    with pytest.raises(OverloadedError, match="1 more would pass the limit of 20"):
        cache.reserve(1)
    cache.release(20)
    cache.reserve(20)
