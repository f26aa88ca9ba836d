"""Threads: pools of those that are there before they are needed, and the lock that all share."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import TypeVar

# An engine's thread gives the interpreter's lock away with each call of the device's, and waits so
# long for it while another computes; Python's own 5 ms are a whole step.
SWITCH_SECONDS = 0.0002
# Work on so few bytes ends sooner than a thread would begin with it.
SMALL_BYTE_COUNT = 2048

Result = TypeVar("Result")


def give_lock_away_soon() -> None:
    """Has this process's threads wait shortly for the lock: for a process with an engine."""
    sys.setswitchinterval(SWITCH_SECONDS)


async def in_thread_if_large(
    byte_count: int, function: Callable[..., Result], *arguments: object
) -> Result:
    """Returns what the function makes of so many bytes, which are few as a rule."""
    if byte_count <= SMALL_BYTE_COUNT:
        return function(*arguments)
    return await asyncio.to_thread(function, *arguments)


def started_pool(thread_count: int) -> ThreadPoolExecutor:
    """Returns a pool of so many threads, 0 or more, that are all there.

    Where the system refuses one, as a container's limit of processes does, it has those before.
    """
    pool = ThreadPoolExecutor(max(1, thread_count))
    barrier = Barrier(thread_count + 1)
    try:
        for _ in range(thread_count):
            pool.submit(barrier.wait)
        barrier.wait()
    except RuntimeError:
        barrier.abort()
    return pool
