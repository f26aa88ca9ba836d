"""Threads for what would block the event loop: a few of each kind, so that none waits for another.

asyncio's own pool is for all kinds at once: there a slow file system would hold up the parsing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue
from threading import Thread
from typing import Any, TypeVar

from protos.process.settings import KIB

Result = TypeVar("Result")


class Pool:
    """A few threads. They are daemons: one that a file system holds for ever holds up no exit."""

    def __init__(self, name: str, thread_count: int, small_byte_count: int = 0) -> None:
        """Starts the threads; work on so few bytes ends sooner than one would begin with it."""
        self._small_byte_count = small_byte_count
        self._calls: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        self._threads = [
            Thread(target=self._work, name=f"{name}-{index}", daemon=True)
            for index in range(thread_count)
        ]
        for thread in self._threads:
            thread.start()

    async def run(self, function: Callable[..., Result], *arguments: object) -> Result:
        """Returns what the function returns, computed in a thread.

        A caller that is cancelled waits no longer; a call that has begun goes on to its end.
        """
        future: Future[Result] = Future()
        self._calls.put((future, partial(function, *arguments)))
        return await asyncio.wrap_future(future)

    async def run_if_large(
        self, byte_count: int, function: Callable[..., Result], *arguments: object
    ) -> Result:
        """Returns what the function makes of so many bytes, computed in a thread if it is work."""
        if byte_count <= self._small_byte_count:
            return function(*arguments)
        return await self.run(function, *arguments)

    def close(self) -> None:
        """Lets the threads end, each after the call that it is in."""
        for _ in self._threads:
            self._calls.put(None)

    def _work(self) -> None:
        while call := self._calls.get():
            _run(*call)
            del call  # until the next one comes it would hold its arguments and its result


def _run(future: Future[Any], call: Callable[[], Any]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        result = call()
    except BaseException as error:  # noqa: BLE001 - the caller gets it
        future.set_exception(error)
    else:
        future.set_result(result)


@dataclass(frozen=True)
class Pools:
    """One pool for each kind of work.

    Attributes:
        json: reads and writes JSON.
        files: reads files; a file system may keep a thread for ever.
        hashes: computes digests.
    """

    json: Pool
    files: Pool
    hashes: Pool


@contextmanager
def open_pools() -> Iterator[Pools]:
    """Yields the pools, and closes them when the block is left."""
    pools = Pools(Pool("json", 2, 4 * KIB), Pool("files", 4), Pool("hashes", 2, 128 * KIB))
    try:
        yield pools
    finally:
        for pool in (pools.json, pools.files, pools.hashes):
            pool.close()
