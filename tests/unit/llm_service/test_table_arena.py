"""Memory for tables: whose it is, when it comes back, and what there is where it does not do."""

from __future__ import annotations

import gc
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from structlog.testing import capture_logs

from llm_service.table_arena import (
    ALIGNMENT,
    NO_ARENA,
    SharedArena,
    TableArena,
    mapped,
    page_lock,
    page_locked_arena,
    part_of,
)
from llm_service.tables import joined_tables

PART_COUNT = 4


@pytest.fixture
def memory() -> torch.Tensor:
    """Room for four tables of a part each."""
    return torch.empty(PART_COUNT * ALIGNMENT, dtype=torch.uint8)


@pytest.fixture
def arena(memory: torch.Tensor) -> TableArena:
    return TableArena(memory)


def place(table: torch.Tensor, memory: torch.Tensor) -> int | None:
    """Returns in which part of the memory a table begins; None: elsewhere."""
    offset = table.data_ptr() - memory.data_ptr()
    return offset // ALIGNMENT if 0 <= offset < memory.nbytes else None


def test_tables_are_parts_of_the_memory(arena: TableArena, memory: torch.Tensor) -> None:
    one = arena.new_table([3, 5], torch.float32).fill_(1)
    two = arena.new_table((ALIGNMENT + 1,), torch.uint8).fill_(2)
    three = arena.new_table((1, 2), torch.bfloat16).fill_(3)
    assert (one.shape, two.dtype, three.shape) == ((3, 5), torch.uint8, (1, 2))
    assert [place(table, memory) for table in (one, two, three)] == [0, 1, 3]
    assert (two.data_ptr() - one.data_ptr()) % ALIGNMENT == 0
    assert memory[:60].view(torch.float32).tolist() == [1] * 15
    assert memory[ALIGNMENT : 2 * ALIGNMENT + 1].tolist() == [2] * (ALIGNMENT + 1)
    assert (one == 1).all()
    assert (three == 3).all()


def test_without_room_a_table_is_elsewhere(arena: TableArena, memory: torch.Tensor) -> None:
    full = [arena.new_table([ALIGNMENT], torch.uint8) for _ in range(PART_COUNT)]
    further = arena.new_table([2, 3], torch.float16)
    assert [place(table, memory) for table in full] == [0, 1, 2, 3]
    assert place(further, memory) is None
    assert (further.shape, further.dtype) == ((2, 3), torch.float16)
    larger = arena.new_table([memory.nbytes + 1], torch.uint8)
    assert larger.nbytes == memory.nbytes + 1


def test_a_part_comes_back_with_the_last_view_of_it(
    arena: TableArena, memory: torch.Tensor
) -> None:
    table = arena.new_table([memory.nbytes], torch.uint8)
    view = table.view(torch.float32).view(2, -1)[1]
    del table
    assert place(arena.new_table([1], torch.uint8), memory) is None
    detached = view.detach()
    del view
    assert place(arena.new_table([1], torch.uint8), memory) is None
    del detached
    assert place(arena.new_table([1], torch.uint8), memory) == 0


def test_a_part_comes_back_from_another_thread(arena: TableArena, memory: torch.Tensor) -> None:
    tables = [arena.new_table([memory.nbytes], torch.uint8)]
    thread = threading.Thread(target=tables.clear)
    thread.start()
    thread.join()
    assert place(arena.new_table([memory.nbytes], torch.uint8), memory) == 0


def test_a_part_may_come_back_while_another_is_taken(
    arena: TableArena, memory: torch.Tensor
) -> None:
    """As by the garbage collector, in the thread that takes."""
    cycle: list[object] = [arena.new_table([memory.nbytes], torch.uint8)]
    cycle.append(cycle)
    with arena._taking:
        del cycle
        gc.collect()
    assert place(arena.new_table([1], torch.uint8), memory) == 0


def test_memory_stays_as_long_as_a_table() -> None:
    memory = torch.zeros(ALIGNMENT, dtype=torch.uint8)
    storage = weakref.ref(arena := TableArena(memory))
    table = arena.new_table([ALIGNMENT], torch.uint8).fill_(7)
    del memory, arena
    gc.collect()
    assert storage() is not None
    assert (table == 7).all()
    del table
    assert storage() is None


def test_tables_of_many_threads_are_apart(memory: torch.Tensor) -> None:
    arena = TableArena(memory)
    places: list[int | None] = []

    def use(value: int) -> bool:
        table = arena.new_table([ALIGNMENT // 2], torch.uint8).fill_(value)
        places.append(place(table, memory))
        return bool((table == value).all())

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(use, [number % 256 for number in range(2000)]))
    assert set(places) >= {0, 1}
    assert place(arena.new_table([memory.nbytes], torch.uint8), memory) == 0


def test_joined_tables_are_in_the_arena(arena: TableArena, memory: torch.Tensor) -> None:
    table = torch.ones(2, 3)
    assert place(joined_tables([table, table], arena), memory) == 0


def test_without_a_gpu_tables_are_in_ordinary_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    assert page_locked_arena(1 << 60) is NO_ARENA
    assert NO_ARENA.new_table([2, 3], torch.float32).shape == (2, 3)


def test_what_cannot_be_page_locked_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    with capture_logs() as logs:
        assert page_locked_arena(1 << 60) is NO_ARENA
    assert [(log["event"], log["byte_count"]) for log in logs] == [
        ("tables_not_page_locked", 1 << 60)
    ]


@pytest.mark.gpu
def test_another_process_page_locks_its_map_of_the_arena() -> None:
    torch.zeros(1, device="cuda")
    arena = SharedArena(PART_COUNT * ALIGNMENT)
    table = arena.new_table([4, 8], torch.bfloat16).fill_(3)
    memory = mapped(arena.file.number, arena.file.byte_count)
    page_lock(memory)
    there = part_of(memory, 0, [4, 8], torch.bfloat16, lambda: None)
    assert there.is_pinned()
    assert not table.is_pinned()
    assert torch.equal(there.to("cuda", non_blocking=True).cpu(), table)


@pytest.mark.gpu
def test_beside_a_gpu_tables_are_page_locked() -> None:
    torch.zeros(1, device="cuda")
    arena = page_locked_arena(PART_COUNT * ALIGNMENT)
    tables = [arena.new_table([4, 8], torch.bfloat16).fill_(value) for value in range(2)]
    joined = joined_tables(tables, arena)
    assert all(table.is_pinned() for table in (*tables, joined, tables[1][2:]))
    for table in (*tables, joined):
        assert torch.equal(table.to("cuda", non_blocking=True).cpu(), table)
    assert not arena.new_table([PART_COUNT * ALIGNMENT], torch.uint8).is_pinned()
