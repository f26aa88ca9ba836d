"""Threads: those of pools are there from the start, and small work needs none."""

from __future__ import annotations

import threading

from protos.process.threads import SMALL_BYTE_COUNT, in_thread_if_large, started_pool


def test_a_pool_has_its_threads_before_the_first_task() -> None:
    before = threading.active_count()
    pool = started_pool(5)
    assert threading.active_count() == before + 5
    pool.shutdown()


async def test_a_thread_computes_what_is_large() -> None:
    own = threading.current_thread()
    assert await in_thread_if_large(SMALL_BYTE_COUNT, threading.current_thread) is own
    assert await in_thread_if_large(SMALL_BYTE_COUNT + 1, threading.current_thread) is not own
