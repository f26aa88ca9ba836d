"""Pools: their threads are there from the start."""

from __future__ import annotations

import threading

from protos.process.threads import started_pool


def test_a_pool_has_its_threads_before_the_first_task() -> None:
    before = threading.active_count()
    pool = started_pool(5)
    assert threading.active_count() == before + 5
    pool.shutdown()
