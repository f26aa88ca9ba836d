"""Which of the info lines are written when requests make more than a log is to hold."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable

import structlog
from structlog.typing import EventDict, WrappedLogger

# A request that takes longer has its lines: with 256 in flight that is 26 a second at most.
SLOW_SECONDS = 10.0
WINDOW_SECONDS = 1.0
# The most lines of a second, as a multiple of those that are meant. A flood whose ids nobody chose
# has nearly so many in its first second, when its rate is not known yet.
MOST_TIMES = 5


class InfoSampler:
    """Leaves info lines of some requests out where there would be more than so many a second.

    A request's lines are kept or left out together, by its id: processes that have as many lines
    keep those of the same requests, and one that keeps fewer keeps some of the other's. Warnings,
    errors, lines of slow requests and lines of no request are always written. The next line that
    is written has `left_out_count`, the number of those before it that were not.

    A client chooses its requests' ids, and so whether their lines are kept; MOST_TIMES bounds them.
    """

    def __init__(
        self, lines_per_second: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._lines_per_second = lines_per_second
        self._clock = clock
        self._window_end = 0.0
        self._count = self._last_count = 0  # of this second and of the one before
        self._kept_count = 0  # of this second
        self._left_out_count = 0

    def __call__(self, _: WrappedLogger, level: str, event: EventDict) -> EventDict:
        """Lets an event pass; raises DropEvent for one that is left out."""
        request_id = event.get("request_id")
        if level == "info" and request_id and not self._is_kept(request_id, event):
            self._left_out_count += 1
            raise structlog.DropEvent
        if self._left_out_count:
            event["left_out_count"], self._left_out_count = self._left_out_count, 0
        return event

    def _is_kept(self, request_id: str, event: EventDict) -> bool:
        self._note()
        if event.get("total_seconds", 0.0) >= SLOW_SECONDS:
            return True
        most = max(self._count, self._last_count)
        is_kept = (
            most <= self._lines_per_second or fraction(request_id) * most < self._lines_per_second
        ) and self._kept_count < MOST_TIMES * self._lines_per_second
        self._kept_count += is_kept
        return is_kept

    def _note(self) -> None:
        if (now := self._clock()) >= self._window_end:
            is_next = now < self._window_end + WINDOW_SECONDS
            self._last_count = self._count if is_next else 0
            self._count, self._kept_count, self._window_end = 0, 0, now + WINDOW_SECONDS
        self._count += 1


def fraction(request_id: str) -> float:
    """Returns a number from 0 to 1 that is the same for an id in every process."""
    digest = hashlib.blake2b(request_id.encode(errors="replace"), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64
