"""Simulated time: processes are generators that yield the seconds they wait."""

from __future__ import annotations

import heapq
from collections.abc import Generator
from itertools import count

Process = Generator[float, None, None]


class Clock:
    """Runs processes in the order of their moments.

    Attributes:
        now: simulated seconds since the start.
    """

    def __init__(self) -> None:
        self.now = 0.0
        self._numbers = count()  # of two at one moment, the older one goes first
        self._waiting: list[tuple[float, int, Process]] = []

    def start(self, process: Process, seconds: float = 0.0) -> None:
        """Lets a process begin in so many seconds."""
        heapq.heappush(self._waiting, (self.now + seconds, next(self._numbers), process))

    def run(self) -> None:
        """Returns when all processes have ended."""
        while self._waiting:
            self.now, _, process = heapq.heappop(self._waiting)
            for seconds in process:
                self.start(process, seconds)
                break
