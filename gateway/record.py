"""What one request cost: for its line in the log, and for the metrics."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from gateway.events import ChatEvent, Usage

Stage = Literal["body", "fetch", "encode_wait", "transfer", "first_token"]
STAGES: tuple[Stage, ...] = get_args(Stage)


@dataclass
class RequestRecord:
    """Filled while a request is answered.

    Attributes:
        arrival: when it came, as all times of `time.monotonic`.
        stage_seconds: where its time went. `body`: from the arrival to the whole body.
            `fetch`: until its pictures were there and named. `encode_wait`: from the first picture
            sent to the vision service to the header of the last. `transfer`: from there to the last
            piece that the LLM service has been handed. `first_token`: from the arrival to the first
            token.
        image_count: pictures in the request.
        reused_image_count: of these, those that the LLM service had.
        cached_image_count: those that came from the vision service's cache.
        encoded_image_count: those that the vision service computed.
        encoded_tile_count: how many tiles these had.
        prompt_token_count: of a complete answer, as all counts of tokens.
        error: the reason of the error that it ended with.
    """

    arrival: float = field(default_factory=time.monotonic)
    stage_seconds: dict[Stage, float] = field(default_factory=dict)
    image_count: int = 0
    reused_image_count: int = 0
    cached_image_count: int = 0
    encoded_image_count: int = 0
    encoded_tile_count: int = 0
    prompt_token_count: int | None = None
    image_token_count: int | None = None
    cached_token_count: int | None = None
    output_token_count: int | None = None
    error: str | None = None
    ignored_fields: str | None = None
    _sent_at: float = field(default=0.0, init=False)
    _header_at: float = field(default=0.0, init=False)
    _missing_header_count: int = field(default=0, init=False)

    def elapsed(self) -> float:
        """Returns the seconds since the request's arrival."""
        return round(time.monotonic() - self.arrival, 6)

    @contextmanager
    def timed(self, stage: Stage) -> Iterator[None]:
        """Times a stage, even one that fails."""
        start = time.monotonic()
        try:
            yield
        finally:
            self._time(stage, start)

    @contextmanager
    def piping(self, wanted_image_count: int) -> Iterator[None]:
        """Times the pictures that the LLM service lacks, on their way from the vision service."""
        self.reused_image_count = self.image_count - wanted_image_count
        self._missing_header_count = wanted_image_count
        self._sent_at = time.monotonic()
        try:
            yield
        finally:
            if self._missing_header_count:  # it has failed, after this wait
                self._time("encode_wait", self._sent_at)
            elif wanted_image_count:
                self._time("transfer", self._header_at)

    def note_header(self, tile_count: int, *, cache_hit: bool) -> None:
        """A picture's embedding begins to come."""
        self._header_at = time.monotonic()
        self._missing_header_count -= 1
        self._time("encode_wait", self._sent_at)
        if cache_hit:
            self.cached_image_count += 1
        else:
            self.encoded_image_count += 1
            self.encoded_tile_count += tile_count

    def note_first_token(self) -> None:
        """The answer begins."""
        self._time("first_token", self.arrival)

    def note_event(self, event: ChatEvent) -> None:
        """A part of the answer has come; the last one tells the tokens."""
        if isinstance(event, Usage):
            self.prompt_token_count = event.prompt_token_count
            self.image_token_count = event.image_token_count
            self.cached_token_count = event.cached_token_count
            self.output_token_count = event.output_token_count

    def costs(self) -> dict[str, Any]:
        """Returns the fields of the request's line in the log."""
        stages = {f"{stage}_seconds": self.stage_seconds.get(stage) for stage in STAGES}
        untold = ("arrival", "stage_seconds")
        rest = {
            name: value
            for name, value in vars(self).items()
            if name not in untold and not name.startswith("_")
        }
        return stages | rest

    def _time(self, stage: Stage, start: float) -> None:
        self.stage_seconds[stage] = round(time.monotonic() - start, 6)
