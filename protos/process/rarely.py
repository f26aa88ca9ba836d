"""Lines of the log that somebody could cause again and again: one in a while is enough."""

from __future__ import annotations

import time
from collections.abc import Hashable


class Rarely:
    """Lets an event be logged once in so many seconds.

    The events are few: what a client chooses may be no part of them.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._quiet_until: dict[Hashable, float] = {}

    def lets(self, event: Hashable = None) -> bool:
        """Says whether it may be logged now, and begins its silence."""
        now = time.monotonic()
        if now < self._quiet_until.get(event, 0.0):
            return False
        self._quiet_until[event] = now + self._seconds
        return True
