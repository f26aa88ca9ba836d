"""Memory for prompt tables: page-locked where a GPU reads them, and no more than was asked for."""

from __future__ import annotations

import ctypes
import math
import threading
import weakref
from collections import deque
from collections.abc import Sequence

import structlog
import torch

from protos.process.first_fit import FirstFit

logger = structlog.get_logger()

# Parts begin at multiples of it.
ALIGNMENT = 4096


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
        # This object goes with the last tensor over it: a view does not keep the tensor that it is
        # a view of.
        part = (ctypes.c_uint8 * byte_count).from_address(self._memory.data_ptr() + begin)
        weakref.finalize(part, self._leave, begin).atexit = False
        return torch.frombuffer(part, dtype=dtype).view(tuple(shape))

    def _take(self, byte_count: int) -> int | None:
        with self._taking:
            while self._left:
                self._parts.give_back(self._left.popleft())
            return self._parts.take(byte_count)

    def _leave(self, begin: int) -> None:
        # Whoever is being interrupted by this may have the lock. What is still to be called back
        # keeps this object, and so the memory.
        self._left.append(begin)


# Where no GPU reads tables, they are in ordinary memory.
NO_ARENA = TableArena(torch.empty(0, dtype=torch.uint8))


def page_locked_arena(byte_count: int) -> TableArena:
    """Returns an arena of page-locked memory if this process uses a GPU, and can have it."""
    if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call] # PyTorch's
        return NO_ARENA
    try:
        return TableArena(torch.empty(byte_count, dtype=torch.uint8, pin_memory=True))
    except RuntimeError as error:
        logger.warning("tables_not_page_locked", byte_count=byte_count, error=str(error))
        return NO_ARENA
