"""How often all streams of a process together are given something new."""

from __future__ import annotations


class Pacing:
    """Shares the messages that a process may send in a second among its streams.

    A message costs this process, the gateway and the client about as much with ten tokens as with
    one. So each of N streams is given what has come at most once in N / max_messages_per_second
    seconds, which is no bound where the engine's steps take longer.

    Attributes:
        stream_count: streams that have begun and not ended.
    """

    def __init__(self, max_messages_per_second: float) -> None:
        self._max_messages_per_second = max_messages_per_second
        self.stream_count = 0

    @property
    def seconds(self) -> float:
        """From one message of a stream to its next, with as many streams as there are now."""
        return self.stream_count / self._max_messages_per_second


UNPACED = Pacing(float("inf"))
