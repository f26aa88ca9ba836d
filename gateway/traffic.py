"""Chat requests: how many may be in flight, and that none enters while the gateway drains."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import structlog

from protos.errors import OverloadedError, UnavailableError

logger = structlog.get_logger()

# For the last words of requests that are cut short.
FAREWELL_SECONDS = 1.0


class Traffic:
    """Admits requests, and waits for their end.

    Attributes:
        draining: whether the process is about to stop.
        request_count: requests in flight, those whose body still comes apart.
    """

    def __init__(self, max_request_count: int) -> None:
        self.draining = False
        self.request_count = 0
        self._max_request_count = max_request_count
        self._tasks: set[asyncio.Task[Any]] = set()
        self._is_over = False
        self._idle = asyncio.Event()
        self._idle.set()

    @contextmanager
    def arrival(self) -> Iterator[None]:
        """Lets a request's head in, and makes a drain wait until the block is left.

        Raises:
            UnavailableError: the gateway drains; or, within the block, it has drained long enough.
            OverloadedError: too many requests are in flight.
        """
        if self.draining:
            raise UnavailableError("the gateway is stopping", retry_after=1)
        self._check_places()  # its body would come in vain
        task = _current_task()
        self._tasks.add(task)
        self._idle.clear()
        try:
            with self.cut_short():
                yield
        finally:
            self._tasks.discard(task)
            if not self._tasks:
                self._idle.set()

    @contextmanager
    def place(self) -> Iterator[None]:
        """Gives a place to a request whose body is there: slow bodies take none.

        Raises:
            OverloadedError: too many requests are in flight.
        """
        self._check_places()
        self.request_count += 1
        try:
            yield
        finally:
            self.request_count -= 1

    def _check_places(self) -> None:
        if self.request_count >= self._max_request_count:
            raise OverloadedError(
                f"{self.request_count} chat requests are in flight;"
                f" the limit is {self._max_request_count}",
                retry_after=1,
            )

    @contextmanager
    def cut_short(self) -> Iterator[None]:
        """Raises UnavailableError within the block when the drain has lasted long enough."""
        try:
            yield
        except asyncio.CancelledError as error:
            if not self._is_over:
                raise
            if sys.version_info >= (3, 11):
                _current_task().uncancel()
            raise UnavailableError(
                "the gateway has stopped before the end of the answer", retry_after=1
            ) from error

    async def drain(self, seconds: float) -> None:
        """Admits no more requests, waits at most so long for those in flight, and cuts them short.

        These have a moment to say so.
        """
        self.draining = True
        if await self._becomes_idle(seconds):
            return
        logger.warning("requests_cut_off", request_count=len(self._tasks))
        self._is_over = True
        for task in self._tasks:
            task.cancel()
        await self._becomes_idle(FAREWELL_SECONDS)

    async def _becomes_idle(self, seconds: float) -> bool:
        if self._idle.is_set():
            return True
        try:
            await asyncio.wait_for(self._idle.wait(), seconds)
        except asyncio.TimeoutError:
            return False
        return True


def _current_task() -> asyncio.Task[Any]:
    task = asyncio.current_task()
    assert task
    return task
