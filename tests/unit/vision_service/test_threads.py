"""Threads: every error of theirs is the caller's, and fewer do the same work."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Executor, Future
from functools import partial
from typing import Any

import pytest

from protos.process.threads import started_pool
from vision_service.threads import Threads

POOL = started_pool(2)


def test_a_pool_does_with_the_threads_that_the_system_gives(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    start, refused = threading.Thread.start, list[threading.Thread]()
    before = threading.active_count()

    def start_two(thread: threading.Thread) -> None:
        if threading.active_count() == before + 2:
            refused.append(thread)
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_two)
    pool = started_pool(5)
    done: list[int] = []
    Threads(6, pool).run([partial(done.append, number) for number in range(100)])
    assert sorted(done) == list(range(100))
    assert refused
    pool.shutdown()


def on_another_thread(caller: int, started: threading.Barrier, error: Exception) -> None:
    started.wait(60)
    if threading.get_ident() != caller:
        raise error


def test_an_error_of_another_thread_is_raised() -> None:
    started = threading.Barrier(2)
    task = partial(on_another_thread, threading.get_ident(), started, MemoryError())
    with pytest.raises(MemoryError):
        Threads(2, POOL).run([task, task])


def test_no_task_runs_any_more_when_an_error_is_raised() -> None:
    caller, started = threading.get_ident(), threading.Barrier(2)
    done: list[bool] = []

    def task() -> None:
        started.wait(60)
        if threading.get_ident() == caller:
            raise MemoryError
        time.sleep(0.2)
        done.append(True)

    with pytest.raises(MemoryError):
        Threads(2, POOL).run([task, task])
    assert done == [True]


def test_what_runs_is_waited_for_when_the_pool_has_no_room() -> None:
    ran: list[Future[None]] = []

    class FullPool(Executor):
        def submit(self, *task: Any) -> Future[Any]:  # type: ignore[override]
            if ran:
                raise MemoryError
            ran.append(POOL.submit(*task))
            return ran[0]

    with pytest.raises(MemoryError):
        Threads(3, FullPool()).run([lambda: time.sleep(0.2)] * 3)
    assert ran[0].done()
