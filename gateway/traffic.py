"""Chat requests: how many may be in flight, and that none enters while the gateway drains."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

import structlog

from protos.errors import OverloadedError, UnavailableError

logger = structlog.get_logger()


class Traffic:
    """Admits requests, and waits for their end.

    Attributes:
        draining: whether the process is about to stop.
    """

    def __init__(self, max_request_count: int) -> None:
        self.draining = False
        self._max_request_count = max_request_count
        self._arrived_count = 0
        self._request_count = 0
        self._idle = asyncio.Event()
        self._idle.set()

    @contextmanager
    def arrival(self) -> Iterator[None]:
        """Lets a request's head in, and makes a drain wait until the block is left.

        Raises:
            UnavailableError: the gateway drains.
            OverloadedError: too many requests are in flight.
        """
        if self.draining:
            raise UnavailableError("the gateway is stopping", retry_after=1)
        self._check_places()  # its body would come in vain
        self._arrived_count += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._arrived_count -= 1
            if not self._arrived_count:
                self._idle.set()

    @contextmanager
    def place(self) -> Iterator[None]:
        """Gives a place to a request whose body is there: slow bodies take none.

        Raises:
            OverloadedError: too many requests are in flight.
        """
        self._check_places()
        self._request_count += 1
        try:
            yield
        finally:
            self._request_count -= 1

    def _check_places(self) -> None:
        if self._request_count >= self._max_request_count:
            raise OverloadedError(
                f"{self._request_count} chat requests are in flight;"
                f" the limit is {self._max_request_count}",
                retry_after=1,
            )

    async def drain(self, seconds: float) -> None:
        """Admits no more requests, and waits for those in flight, at most so long."""
        self.draining = True
        if self._idle.is_set():
            return
        try:
            await asyncio.wait_for(self._idle.wait(), seconds)
        except asyncio.TimeoutError:
            logger.warning("requests cut off", request_count=self._arrived_count)
