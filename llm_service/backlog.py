"""How long a new sequence would wait for its turn in the engine."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType

from llm_service.engines.base import LLMEngine
from protos.process.backlog import Backlog, refuse_wait


class SequenceBacklog:
    """The sequences without a token so far, and what they mean for one that comes now.

    It counts sequences and not the tokens of their prompts: what a prompt costs shows only once the
    engine has looked into its KV cache, where a second turn's thousands cost nothing; and where
    slots are short, a turn comes when another's output ends, however long the prompt is.

    While the engine can start more than wait, nobody waits, however slow it is. Nor does that time
    show its pace: where slots are free, sequences begin as fast as prompts are read, and where they
    are taken, as fast as answers end.

    Few that wait show too slow a pace where many answers end together. So nobody is said to wait
    for longer than what runs would take to be replaced as often as that needs.
    """

    def __init__(self, engine: LLMEngine, clock: Callable[[], float] = time.monotonic) -> None:
        self._engine = engine
        self._clock = clock
        self._backlog = Backlog(clock, self._is_full)
        self._arrivals: dict[Place, float] = {}
        self._stay_seconds = 0.0

    def seconds(self) -> float:
        """Returns the seconds until a new sequence's turn."""
        if not self._is_full():
            return 0.0
        return min(self._backlog.seconds(), self._round_count() * self._longest_stay())

    def _is_full(self) -> bool:
        return self._backlog.waiting_count > self._engine.load().startable_sequence_count

    def _round_count(self) -> float:
        """Returns how often all that runs ends before a new sequence's turn."""
        running_count = max(1, self._engine.load().running_sequence_count)
        return 1 + self._backlog.waiting_count / running_count

    def _longest_stay(self) -> float:
        """Returns the seconds from a request's arrival to its end, lately or so far."""
        # A copy: the event loop changes it while another thread asks.
        oldest = min(self._arrivals.copy().values(), default=self._clock())
        return max(self._stay_seconds, self._clock() - oldest)

    def _arrive(self, place: Place) -> None:
        self._arrivals.setdefault(place, self._clock())

    def _depart(self, place: Place, *, tells_stay: bool) -> None:
        arrival = self._arrivals.pop(place, None)
        if tells_stay and arrival is not None:
            stay_seconds = self._clock() - arrival
            shorter = self._stay_seconds + (stay_seconds - self._stay_seconds) / 8
            self._stay_seconds = max(stay_seconds, shorter)

    def refuse(self, max_seconds: float | None) -> None:
        """Refuses a request that would wait longer than it may.

        Raises:
            OverloadedError: with the time after which it makes sense again.
        """
        if max_seconds is not None:
            refuse_wait(self.seconds(), max_seconds)

    def place(self, sequence_count: int, max_seconds: float | None) -> Place:
        """Returns the place of a request's sequences, which is not taken yet."""
        return Place(self, self._backlog, sequence_count, max_seconds)


class Place:
    """One request's place: taken until the block ends; it waits until each sequence has a token."""

    def __init__(
        self,
        sequences: SequenceBacklog,
        backlog: Backlog,
        sequence_count: int,
        max_seconds: float | None,
    ) -> None:
        self._sequences = sequences
        self._job = backlog.job()
        self._sequence_count = sequence_count
        self._max_seconds = max_seconds
        self._begun: set[int] = set()

    def __enter__(self) -> Place:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.leave()

    def take_in_time(self) -> None:
        """Takes the place, if the request's turn will come in time.

        Raises:
            OverloadedError: it will not.
        """
        self._sequences.refuse(self._max_seconds)
        self.take()

    def take(self) -> None:
        """Takes the place, unless it is taken."""
        self._sequences._arrive(self)
        self._job.enter(self._sequence_count)

    def leave(self) -> None:
        """Gives the place back: the request has to wait for something else first."""
        # In calm, a stay says nothing of those beside a crowd.
        tells_stay = bool(self._begun) and self._job.busy_share() > 0
        self._sequences._depart(self, tells_stay=tells_stay)
        self._job.leave()

    def begin(self, index: int) -> None:
        """Says that a sequence has a token."""
        if index not in self._begun:
            self._begun.add(index)
            self._job.finish(1)
