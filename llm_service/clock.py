"""The clock of one request: when it passed from one stage to the next."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from llm_service.backlog import Place
from llm_service.engines.base import Account
from protos.process.call_record import Stage, call_record
from protos.process.tracing import current_span


class RequestClock:
    """When a request came how far, all times of `time.monotonic`; and its place until its turn.

    Its stages follow each other: `prompt`, until the engine is given the prompt with its images;
    `queue`, until the engine begins with it; `prefill`, until its first token; `decode`, until its
    latest. Of several choices the first one counts. Of an engine that does not tell when it began
    there is neither `queue` nor `prefill`.

    Attributes:
        place: the request's place among those that have no token yet.
    """

    def __init__(self, arrival: float, place: Place) -> None:
        self.place = place
        self._arrival = arrival
        self._account = Account()
        self._asked_at: float | None = None
        self._first_at: float | None = None
        self._last_at = arrival

    def ask(self, account: Account) -> None:
        """Notes that the engine is given the prompt, with the account of its sequences."""
        self._account = account
        self._asked_at = time.monotonic()

    def tick(self, index: int) -> None:
        """Notes that a choice has a token."""
        self.place.begin(index)
        self._last_at = time.monotonic()
        if self._first_at is None:
            self._first_at = self._last_at
            current_span().event("first_token")

    @property
    def has_ticked(self) -> bool:
        """Whether there was a token."""
        return self._first_at is not None

    @property
    def first_token_seconds(self) -> float:
        """From the arrival to the first token; 0 before."""
        return 0.0 if self._first_at is None else self._first_at - self._arrival

    @property
    def total_seconds(self) -> float:
        """From the arrival to the latest token; 0 before."""
        return self._last_at - self._arrival

    def stages(self) -> list[Stage]:
        """Returns the stages so far; the one that it is in ends now."""
        now, started_at, first_at = time.monotonic(), self._account.started_at, self._first_at
        is_queued = first_at is None and started_at is None
        parts = (
            ("prompt", self._arrival, self._asked_at or now),
            ("queue", self._asked_at, now if is_queued else started_at),
            ("prefill", started_at, first_at or now),
            ("decode", first_at, self._last_at),
        )
        return [
            Stage(name, start, end)
            for name, start, end in parts
            if start is not None and end is not None
        ]


@contextmanager
def running_clock(arrival: float, place: Place) -> Iterator[RequestClock]:
    """Yields a request's clock; the call's record has its stages when the block ends."""
    record, clock = call_record(), RequestClock(arrival, place)
    try:
        yield clock
    finally:
        record.stages += clock.stages()
