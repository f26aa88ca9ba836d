"""How often all streams of a process together are given something new."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable

# Of a turn: an event loop's timers may call so much too soon.
EARLY_SHARE = 0.01


class Pacing:
    """Shares the messages that a process may send in a second among its streams.

    A message costs this process, the gateway and the client about as much with ten tokens as with
    one. So N streams have a turn every N / max_messages_per_second seconds, in which each is given
    what has come. Where an engine's step takes longer, that holds nothing back. The turn is the
    same for all, as messages that are sent together cost less.

    The event loop's.

    Attributes:
        joins: whether a message may hold several outputs; not where nothing is bounded.
        stream_count: streams that have begun and not ended.
    """

    def __init__(self, max_messages_per_second: float) -> None:
        self._max_messages_per_second = max_messages_per_second
        self._waiting: list[Callable[[], None]] = []
        self.joins = math.isfinite(max_messages_per_second)
        self.stream_count = 0

    def turn_after(self, moment: float) -> float:
        """Returns when the first turn is that begins after this moment, of the loop's time."""
        seconds = self.stream_count / self._max_messages_per_second
        return (math.floor(moment / seconds + EARLY_SHARE) + 1) * seconds if seconds else moment

    def call_at(self, turn: float, wake: Callable[[], None]) -> None:
        """Calls it at a turn, or at an earlier one that others wait for."""
        self._waiting.append(wake)
        if len(self._waiting) == 1:
            asyncio.get_running_loop().call_at(turn, self._call_all)

    def _call_all(self) -> None:
        waiting, self._waiting = self._waiting, []
        for wake in waiting:
            wake()


UNPACED = Pacing(float("inf"))
