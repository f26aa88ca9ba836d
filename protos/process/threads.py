"""Pools whose threads are there before they are needed."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier


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
