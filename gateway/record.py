"""What one request cost: for its line in the log, and for the metrics."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from gateway.events import (
    ChatEvent,
    EngineTimings,
    Finished,
    FinishReason,
    TextDelta,
    Usage,
)
from gateway.generation import GenerationRequest
from gateway.services.messages import EmbeddingHeader, EmbeddingTrailer, EncodeTimings

Stage = Literal["body", "fetch", "encode_wait", "transfer", "prefill", "first_token", "decode"]
STAGES: tuple[Stage, ...] = get_args(Stage)


@dataclass
class Picture:
    """A picture of a request.

    Attributes:
        header: what the vision service said of its embedding; None where the LLM service had it, or
            its part of the KV cache.
    """

    header: EmbeddingHeader | None = None

    @property
    def source(self) -> Literal["llm", "vision_cache", "encoded"]:
        if self.header is None:
            return "llm"
        return "vision_cache" if self.header.cache_hit else "encoded"


@dataclass
class TokenTally:
    """What the LLM service has told so far of one generation's tokens.

    Attributes:
        request: the generation.
        prompt_token_count: None until it is told, with the first token.
        output_token_count: of all choices.
    """

    request: GenerationRequest
    prompt_token_count: int | None = None
    output_token_count: int = 0

    def note_event(self, event: ChatEvent) -> None:
        """A part of the answer has come; the usage, which comes last, goes before the rest."""
        if isinstance(event, TextDelta):
            self.output_token_count += event.token_count
            if event.prompt_token_count is not None:
                self.prompt_token_count = event.prompt_token_count
        elif isinstance(event, Usage):
            self.prompt_token_count = event.prompt_token_count
            self.output_token_count = event.output_token_count


@dataclass
class RequestRecord:
    """Filled while a request is answered.

    Attributes:
        arrival: when it came, as all times of `time.monotonic`.
        stage_seconds: where its time went. `body`: from the arrival to the whole body.
            `fetch`: until its pictures were there and named. `encode_wait`: from the first picture
            sent to the vision service to the header of the last. `transfer`: from there until the
            LLM service has been handed the last piece, or has read it from shared memory.
            `prefill`: from there, or, where it wanted no picture, from the call's start, to the
            first token. `first_token`: from the arrival to the first token. `decode`: from there
            to the answer's end; of several generations the one that ends last.
        pictures: those of the request, in its order, once they have names; equal ones are one
            object. As the LLM service wants only the first of these, its facts are theirs.
        slowest_encode: of the picture on which the vision service spent most.
        fastest_engine: of the generation whose first token took the LLM service's engine least:
            that is never more than `first_token`. None where no engine tells.
        image_count: pictures in the request.
        reused_image_count: of these, those that the LLM service had.
        cached_image_count: those that came from the vision service's cache.
        encoded_image_count: those that the vision service computed.
        encoded_tile_count: how many tiles these had.
        model: the model that answers, by its own name.
        finish_reasons: why the choices have ended that have.
        tallies: of the generations that the LLM service was asked for, complete or not.
        prompt_token_count: of a complete answer, as all counts of tokens.
        error: the reason of the error that it ended with.
        caller: the name of the caller's key; None before it is known.
    """

    arrival: float = field(default_factory=time.monotonic)
    stage_seconds: dict[Stage, float] = field(default_factory=dict)
    pictures: list[Picture] = field(default_factory=list)
    slowest_encode: EncodeTimings = EncodeTimings()
    fastest_engine: EngineTimings | None = None
    tallies: list[TokenTally] = field(default_factory=list)
    image_count: int = 0
    reused_image_count: int = 0
    cached_image_count: int = 0
    encoded_image_count: int = 0
    encoded_tile_count: int = 0
    model: str | None = None
    finish_reasons: list[FinishReason] = field(default_factory=list)
    prompt_token_count: int | None = None
    image_token_count: int | None = None
    cached_token_count: int | None = None
    output_token_count: int | None = None
    error: str | None = None
    caller: str | None = None
    ignored_fields: str | None = None
    _sent_at: float = field(default=0.0, init=False)
    _header_at: float = field(default=0.0, init=False)
    _handed_at: float = field(default=0.0, init=False)
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

    def note_start(self, picture_names: Sequence[Hashable]) -> None:
        """The LLM service is about to be asked."""
        named = {name: Picture() for name in picture_names}
        self.pictures = [named[name] for name in picture_names]
        for stage in ("encode_wait", "transfer"):  # of an attempt that failed
            self.stage_seconds.pop(stage, None)
        self._handed_at = time.monotonic()

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
                self._handed_at = time.monotonic()

    def note_header(self, index: int, header: EmbeddingHeader) -> None:
        """The embedding of the picture of this index begins to come."""
        self.pictures[index].header = header
        self._header_at = time.monotonic()
        self._missing_header_count -= 1
        self._time("encode_wait", self._sent_at)
        if header.cache_hit:
            self.cached_image_count += 1
        else:
            self.encoded_image_count += 1
            self.encoded_tile_count += header.tile_count

    def note_trailer(self, trailer: EmbeddingTrailer) -> None:
        """A picture's embedding has come."""
        if trailer.timings.total_seconds > self.slowest_encode.total_seconds:
            self.slowest_encode = trailer.timings

    def note_first_token(self) -> None:
        """The answer begins, or another generation of the request."""
        if "first_token" not in self.stage_seconds:
            self._time("prefill", self._handed_at)
            self._time("first_token", self.arrival)

    def tally(self, request: GenerationRequest) -> TokenTally:
        """Returns what counts the tokens of a generation that is about to be asked for."""
        self.tallies.append(TokenTally(request))
        return self.tallies[-1]

    def used_token_count(self, untold: Callable[[GenerationRequest], int]) -> int:
        """Returns the tokens of prompts and outputs, complete or not.

        Args:
            untold: tells the tokens of a prompt of which the LLM service has not.
        """
        return sum(
            tally.output_token_count
            + (
                untold(tally.request)
                if tally.prompt_token_count is None
                else tally.prompt_token_count
            )
            for tally in self.tallies
        )

    def note_event(self, event: ChatEvent) -> None:
        """A part of the answer has come; the last one of each generation tells the tokens."""
        if isinstance(event, Finished):
            self.finish_reasons.append(event.reason)
        elif isinstance(event, Usage):
            self.prompt_token_count = (self.prompt_token_count or 0) + event.prompt_token_count
            self.image_token_count = (self.image_token_count or 0) + event.image_token_count
            self.cached_token_count = (self.cached_token_count or 0) + event.cached_token_count
            self.output_token_count = (self.output_token_count or 0) + event.output_token_count
            self._note_engine(event.timings)

    def _note_engine(self, timings: EngineTimings | None) -> None:
        fastest = self.fastest_engine
        if timings and (fastest is None or timings.total_seconds < fastest.total_seconds):
            self.fastest_engine = timings

    def costs(self) -> dict[str, Any]:
        """Returns the fields of the request's line in the log."""
        stages = {f"{stage}_seconds": self.stage_seconds.get(stage) for stage in STAGES}
        untold = (
            *("arrival", "stage_seconds", "pictures"),
            *("slowest_encode", "fastest_engine", "finish_reasons", "tallies"),
        )
        rest = {
            name: value
            for name, value in vars(self).items()
            if name not in untold and not name.startswith("_")
        }
        return stages | rest

    def counts(self) -> dict[str, int | None]:
        """Returns what it used, by the names of the log's line; None: it is not known.

        Of an answer that did not come to its end, as many tokens as the LLM service has told.
        """
        counts = {
            name: value
            for name, value in vars(self).items()
            if name.endswith("_count") and not name.startswith("_")
        }
        prompts = [tally.prompt_token_count for tally in self.tallies]
        if told := [count for count in prompts if count is not None]:
            outputs = (tally.output_token_count for tally in self.tallies)
            counts |= {"prompt_token_count": sum(told), "output_token_count": sum(outputs)}
        return counts

    def _time(self, stage: Stage, start: float) -> None:
        self.stage_seconds[stage] = round(time.monotonic() - start, 6)
