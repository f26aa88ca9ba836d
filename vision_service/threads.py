"""Threads that share the work on one picture."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass

Task = Callable[[], None]


@dataclass(frozen=True)
class Threads:
    """The calling thread, and some of a pool, which release Python's lock while they resize.

    Attributes:
        count: of threads, with the calling one.
        pool: of count - 1 threads or more; or of fewer, with which it takes longer.
    """

    count: int
    pool: Executor

    def run(self, tasks: Sequence[Task]) -> None:
        """Runs all tasks; what one of them raises is raised when none runs any more."""
        left, others = iter(tasks), list[Future[None]]()
        try:
            with suppress(RuntimeError):  # it lacks threads, and the system refuses new ones
                for _ in range(min(self.count, len(tasks)) - 1):
                    others.append(self.pool.submit(_run, left))
            _run(left)
        finally:
            wait(others)
        for other in others:
            other.result()


ALONE = Threads(1, ThreadPoolExecutor(1))  # it starts none before it is asked to


def _run(tasks: Iterator[Task]) -> None:
    """Runs what is left of tasks that several threads take from: a list's iterator allows it."""
    for task in tasks:
        task()
