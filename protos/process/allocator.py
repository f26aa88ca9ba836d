"""What the C library does with freed memory: keep it for the next block, or give it back."""

from __future__ import annotations

import ctypes
import sys

# Not from settings.py: what decodes images starts without all that reads options.
MIB = 1024 * 1024
# Of glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
KEPT_BYTE_COUNT = 64 * MIB
# glibc takes no larger threshold.
LARGEST_KEPT_BLOCK_BYTE_COUNT = 32 * MIB


def keep_freed_memory(
    *,
    block_byte_count: int = LARGEST_KEPT_BLOCK_BYTE_COUNT,
    kept_byte_count: int = KEPT_BYTE_COUNT,
) -> None:
    """Makes glibc keep what is soon needed again, and give larger blocks back once they are freed.

    By itself it may give back the memory of every chunk of an embedding and take it anew, with a
    page fault for each 4 KiB, in each process on the way: 90 ms of an 8B's first token on an H200.

    Args:
        block_byte_count: size from which a block goes back when it is freed.
        kept_byte_count: how much of what smaller blocks free is kept at the end of a heap.
    """
    if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), "mallopt"):
        library.mallopt(M_TRIM_THRESHOLD, kept_byte_count)
        library.mallopt(M_MMAP_THRESHOLD, block_byte_count)


def give_back_freed_memory() -> None:
    """Makes glibc give back what is free in its heaps: once, after what a start alone needs."""
    if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), "malloc_trim"):
        library.malloc_trim(0)
