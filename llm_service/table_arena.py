"""Memory for prompt tables: page-locked where a GPU reads them, and no more than was asked for."""

from __future__ import annotations

import ctypes
import math
import mmap
import threading
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial

import structlog
import torch

from protos.process.first_fit import FirstFit
from protos.process.memory_file import MemoryFile

logger = structlog.get_logger()

# Parts begin at multiples of it.
ALIGNMENT = 4096
FILE_NAME = "image-embeddings"


class TableArena:
    """Tables as parts of one piece of memory; those that it has no room for lie elsewhere.

    A part comes back when the last tensor over it has gone, on whichever thread that is. The
    device may still be copying from it then, which who hands it to the device has to prevent.
    """

    def __init__(self, memory: torch.Tensor) -> None:
        """Takes memory [bytes], uint8."""
        self._memory = memory
        self._parts = FirstFit(memory.nbytes)
        self._taking = threading.Lock()
        self._left: deque[int] = deque()

    def new_table(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """Returns a tensor with whatever was in its memory."""
        byte_count = math.prod(shape) * dtype.itemsize
        begin = self._take(-(-byte_count // ALIGNMENT) * ALIGNMENT)
        if begin is None:
            return torch.empty(tuple(shape), dtype=dtype)
        return part_of(self._memory, begin, shape, dtype, partial(self._leave, begin))

    def offset(self, table: torch.Tensor) -> int | None:
        """Returns where a table begins in the memory; None where it lies elsewhere."""
        begin = table.data_ptr() - self._memory.data_ptr()
        is_inside = 0 <= begin < self._memory.nbytes and table.is_contiguous()
        return begin if is_inside else None

    def _take(self, byte_count: int) -> int | None:
        with self._taking:
            while self._left:
                self._parts.give_back(self._left.popleft())
            return self._parts.take(byte_count)

    def _leave(self, begin: int) -> None:
        # Whoever is being interrupted by this may have the lock. What is still to be called back
        # keeps this object, and so the memory.
        self._left.append(begin)


class SharedArena(TableArena):
    """An arena in memory that another process maps, too.

    Attributes:
        file: the memory.
    """

    def __init__(self, byte_count: int) -> None:
        """Takes no memory before it is used.

        Raises:
            OSError: the system has no files in memory, or not so large ones.
        """
        self.file = MemoryFile(FILE_NAME, byte_count)
        super().__init__(mapped(self.file.number, byte_count))


def mapped(number: int, byte_count: int) -> torch.Tensor:
    """Returns [byte_count] uint8, the memory of a file that the processes that map it share."""
    return torch.frombuffer(mmap.mmap(number, byte_count), dtype=torch.uint8)


def part_of(
    memory: torch.Tensor,
    begin: int,
    shape: Sequence[int],
    dtype: torch.dtype,
    leave: Callable[[], None],
) -> torch.Tensor:
    """Returns a tensor that is a part of memory [bytes], which it keeps.

    `leave` is called when the last tensor over the part has gone, on whichever thread that is.
    """
    # This object goes with the last tensor over it: a view does not keep the tensor that it is
    # a view of.
    byte_count = math.prod(shape) * dtype.itemsize
    part = (ctypes.c_uint8 * byte_count).from_address(memory.data_ptr() + begin)
    weakref.finalize(part, _leave, memory, leave).atexit = False
    return torch.frombuffer(part, dtype=dtype).view(tuple(shape))


# Where no GPU reads tables, they are in ordinary memory.
NO_ARENA = TableArena(torch.empty(0, dtype=torch.uint8))


def _leave(_: torch.Tensor, leave: Callable[[], None]) -> None:
    leave()


def page_locked_arena(byte_count: int) -> TableArena:
    """Returns an arena of page-locked memory if this process uses a GPU, and can have it."""
    if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call] # PyTorch's
        return NO_ARENA
    try:
        return TableArena(torch.empty(byte_count, dtype=torch.uint8, pin_memory=True))
    except RuntimeError as error:
        logger.warning("tables_not_page_locked", byte_count=byte_count, error=str(error))
        return NO_ARENA


def page_lock(memory: torch.Tensor) -> None:
    """Page-locks memory that is there already, if this process uses a GPU, and can have it."""
    if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call] # PyTorch's
        return
    runtime = torch.cuda.cudart()  # type: ignore[no-untyped-call] # PyTorch's
    status = runtime.cudaHostRegister(memory.data_ptr(), memory.nbytes, 0)
    if int(status):
        logger.warning("tables_not_page_locked", byte_count=memory.nbytes, error=str(status))
        with suppress(RuntimeError):  # or the next kernel of this thread would raise the error
            torch.ones(1, device="cuda")
