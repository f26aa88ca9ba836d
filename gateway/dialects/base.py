"""What a dialect is: how its requests are read, and how answers and errors are written in it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from gateway.caller_limits import Rate
from gateway.events import ChatEvent
from gateway.generation import GenerationRequest
from gateway.images.json_paths import JSONPath
from gateway.openai.answers import AnswerHead
from gateway.openai.errors import error_body
from gateway.openai.rate_headers import rate_headers
from gateway.openapi.operation import Operation
from protos.errors import ServiceError


class WholeWriter(Protocol):
    """Collects an answer's events, and writes them as one JSON body."""

    @property
    def held_byte_count(self) -> int:
        """Bytes of what it has collected."""

    def add(self, event: ChatEvent) -> None:
        """Takes the next event; choices are counted through all generations of the request."""

    def body(self) -> bytes:
        """Returns the JSON.

        Raises:
            ServiceError: an event is missing.
        """


class StreamWriter(Protocol):
    """Writes an answer's events as server-sent events."""

    @property
    def held_byte_count(self) -> int:
        """Bytes of what it keeps for the end."""

    def event(self, event: ChatEvent) -> bytes:
        """Returns what is sent for the next event; may be nothing.

        Choices are counted through all generations of the request.
        """

    def end(self) -> bytes:
        """Returns what ends a stream that has succeeded."""

    def error(self, error: ServiceError) -> bytes:
        """Returns what ends a stream that has failed."""


class Call(Protocol):
    """A request of a dialect, read and checked as far as the gateway can."""

    @property
    def generations(self) -> Sequence[GenerationRequest]:
        """What it asks the services for, at least one; all of one model."""

    @property
    def stream(self) -> bool:
        """Whether the answer is sent as it is made."""

    @property
    def ignored_fields(self) -> str | None:
        """The fields that were passed over though they ask for something, for header and log."""

    def whole(self, head: AnswerHead) -> WholeWriter:
        """Returns what writes its answer as one body."""

    def streamed(self, head: AnswerHead) -> StreamWriter:
        """Returns what writes its answer as a stream."""


def openai_error(error: ServiceError, _: str) -> dict[str, Any]:
    """Returns OpenAI's body of an error, which does not name the request."""
    return error_body(error)


@dataclass(frozen=True)
class Dialect:
    """One form of requests and answers.

    Attributes:
        path: where it is served, by POST.
        parse: reads a body, strictly or not; raises ServiceError with the JSON path of the field.
        error_body: returns the JSON of an error that ends a request of this id.
        operation: describes it.
        answer_id_prefix: how its answers' ids begin, before the request's id.
        request_id_key: a further header for the request's id; None: there is none.
        rate_headers: writes the headers that tell how far a caller is from its limits.
        image_places: where images are that arrive in base64.
    """

    path: str
    parse: Callable[[bytes, bool], Call]
    error_body: Callable[[ServiceError, str], dict[str, Any]]
    operation: Operation
    answer_id_prefix: str = ""
    request_id_key: str | None = None
    rate_headers: Callable[[Sequence[Rate]], dict[str, str]] = rate_headers
    image_places: Collection[JSONPath] = ()
