"""Prompt tables go to the engine's process without a copy, and stay there while anybody reads."""

from __future__ import annotations

import gc
import os

import pytest
import torch

from llm_service.engines.base import ImageRows, Prompt
from llm_service.engines.process.tables import DTYPES, table_message, table_of
from llm_service.table_arena import SharedArena, mapped
from protos.identity import EmbeddingId

BYTE_COUNT = 1 << 16
IMAGE = ImageRows(EmbeddingId(b"a" * 32, b"b" * 32), 3)


@pytest.fixture
def arena() -> SharedArena:
    return SharedArena(BYTE_COUNT)


def sent(arena: SharedArena, table: torch.Tensor, *images: ImageRows) -> torch.Tensor:
    """Returns the table that the other side, with a map of its own, makes of a prompt's."""
    message, file = table_message(Prompt([1], table, images), arena)
    files = () if file is None else (os.dup(file.number),)  # as a link does
    return table_of(message, files, mapped(arena.file.number, BYTE_COUNT), lambda: None)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
def test_a_table_in_the_arena_is_the_same_memory(arena: SharedArena, dtype: torch.dtype) -> None:
    arena.new_table([5], torch.uint8)
    table = arena.new_table([3, 4], dtype)
    table.copy_(torch.randn(3, 4))
    there = sent(arena, table, IMAGE)
    assert torch.equal(there, table)
    table[1, 2] = 7
    assert there[1, 2] == 7


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
def test_a_table_elsewhere_has_a_file_of_its_own(arena: SharedArena, dtype: torch.dtype) -> None:
    table = torch.randn(4, 3).to(dtype).T  # not contiguous, either
    assert torch.equal(sent(arena, table, IMAGE), table)
    assert torch.equal(sent(arena, table), table)


def test_a_table_that_has_no_room_in_the_arena_goes_all_the_same(arena: SharedArena) -> None:
    table = arena.new_table([BYTE_COUNT, 2], torch.float32).fill_(2.5)
    assert arena.offset(table) is None
    assert torch.equal(sent(arena, table, IMAGE), table)


def test_rows_that_nobody_holds_are_told_by_their_number(arena: SharedArena) -> None:
    missing = ImageRows(IMAGE.embedding_id, 3, is_held=False)
    message, file = table_message(Prompt([1], torch.ones(3, 4), (missing,)), arena)
    assert (message.shape, message.offset, file) == ((3, 4), None, None)
    assert sent(arena, torch.ones(0, 4)).shape == (0, 4)


def test_its_part_is_left_with_the_last_view_of_it(arena: SharedArena) -> None:
    message, _ = table_message(Prompt([1], arena.new_table([3, 4], torch.float32)), arena)
    left: list[bool] = []
    table = table_of(message, (), mapped(arena.file.number, BYTE_COUNT), lambda: left.append(True))
    row = table[1]
    del table
    gc.collect()
    assert not left
    del row
    gc.collect()
    assert left == [True]
