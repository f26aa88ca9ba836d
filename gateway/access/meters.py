"""How much of a rate by the minute is used: a bucket that what is taken fills, and time drains."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

# In nanoseconds, as the clock counts.
MINUTE = 60 * 10**9


class Taking:
    """Units that were taken at a time, as far as they have not drained: they do so in their order.

    Attributes:
        level: what they add to the meter's.
    """

    def __init__(self, meter: Meter, count: int) -> None:
        self.level = count * MINUTE
        self._meter = meter
        self._count = count

    def settle(self, used_count: int) -> None:
        """Counts, once, what was used in the place of what was taken for it.

        What was taken and has drained meanwhile is gone; what is beyond it has to drain yet.
        """
        if used_count > self._count:
            self._meter.take(used_count - self._count)
        else:
            self._meter.give_back(self, self._count - used_count)


class Meter:
    """Holds a rate to its limit; all in whole numbers, so that nothing is lost by rounding.

    The limit may be taken at once, and then as much in each minute: within any `t` minutes at most
    `(1 + t) * limit` are granted. It is a leaky bucket, with its level in minute-nanoseconds:
    what is taken raises it by MINUTE for each unit, and each nanosecond lowers it by the limit.

    Attributes:
        limit: units a minute.
    """

    def __init__(self, limit: int, clock: Callable[[], int]) -> None:
        """Nothing is used yet. `clock` tells nanoseconds, and never goes back."""
        self.limit = limit
        self._level = 0
        self._takings: deque[Taking] = deque()  # the sum of their levels is the level
        self._clock = clock
        self._time = clock()

    def change_limit(self, limit: int) -> None:
        """Holds to another limit from now on; what was used beyond it is forgiven."""
        if limit != self.limit:
            self._drain()
            self._lower(self._level - limit * MINUTE)
            self.limit = limit

    @property
    def room(self) -> int:
        """Units that may be taken at once."""
        self._drain()
        return max(0, self.limit - -(-self._level // MINUTE))

    @property
    def nanoseconds_to_empty(self) -> int:
        """Time until all of the limit may be taken at once, if nothing is taken until then."""
        self._drain()
        return -(-self._level // self.limit) if self._level else 0

    def nanoseconds_until(self, count: int) -> int:
        """Returns the time until so many may be taken, at most the limit; 0: they may be now."""
        self._drain()
        excess = self._level + (count - self.limit) * MINUTE
        return -(-excess // self.limit) if excess > 0 else 0

    def take(self, count: int) -> Taking:
        """Counts units as used, whether or not there is room."""
        self._drain()
        self._takings.append(taking := Taking(self, count))
        self._level += taking.level
        return taking

    def give_back(self, taking: Taking, count: int) -> None:
        """Counts units as not used, as far as they have not drained."""
        self._drain()
        part = min(count * MINUTE, taking.level)
        taking.level -= part
        self._level -= part

    def _drain(self) -> None:
        now = self._clock()
        self._lower((now - self._time) * self.limit)
        self._time = now

    def _lower(self, amount: int) -> None:
        while self._takings and amount > 0:
            first = self._takings[0]
            part = min(amount, first.level)
            first.level -= part
            self._level -= part
            amount -= part
            if not first.level:
                self._takings.popleft()
