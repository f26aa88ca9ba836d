"""Traces: where a request's time goes, in all three processes, in OpenTelemetry's terms.

Names of attributes without a dot are our own: `tile_count` is exported as `internvl.tile_count`.
docs/traces.yaml has all names. Until `exporting` runs nothing of OpenTelemetry is imported, and a
span is nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import TracebackType
from typing import Any, Literal, Protocol

from protos.errors import ServiceError

Kind = Literal["internal", "server", "client"]
Value = str | bool | int | float | Sequence[str]
Metadata = Iterable[tuple[str, Any]]
NOTHING: Mapping[str, Value] = {}
# How long the last spans may take on their way out of a process that ends.
FLUSH_SECONDS = 3.0


class Span(Protocol):
    """A span; as a context manager it is the current one within its block, and ends with that.

    A block that ends by an exception makes it a failed one, whose `error.type` is a ServiceError's
    reason, "CANCELLED", or the name of a class.
    """

    @property
    def trace_id(self) -> str:
        """32 hexadecimal digits; empty where nothing is exported."""

    def set(self, name: str, value: Value | None) -> None:
        """Sets an attribute; None: leaves it out."""

    def event(self, name: str, at: float | None = None, **attributes: Value) -> None:
        """Adds an event of now, or of a time of `time.monotonic()`."""

    def fail(self, error_type: str) -> None:
        """Marks it as failed, and says why."""

    def __enter__(self) -> Span: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...


class Exporter(Protocol):
    """What makes spans that somebody gets."""

    def span(
        self, name: str, kind: Kind, start: float | None, attributes: Mapping[str, Value]
    ) -> Span:
        """Returns one that has begun."""

    def add_span(
        self, name: str, start: float, end: float, attributes: Mapping[str, Value]
    ) -> None:
        """Adds one that is over."""

    def current_span(self) -> Span:
        """Returns the one of the block."""

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """Returns W3C's headers of the current span."""

    def continued(self, metadata: Metadata) -> AbstractContextManager[None]:
        """Makes the caller's span the current one."""

    def observe(self, name: str, seconds: float, attributes: Mapping[str, Value]) -> None:
        """Adds a value to a histogram."""


class _NoSpan:
    """What a span is while nothing is exported."""

    trace_id = ""

    def set(self, name: str, value: Value | None) -> None:
        pass

    def event(self, name: str, at: float | None = None, **attributes: Value) -> None:
        pass

    def fail(self, error_type: str) -> None:
        pass

    def __enter__(self) -> _NoSpan:
        return self

    def __exit__(self, *_: object) -> None:
        pass


NO_SPAN: Span = _NoSpan()
_NO_CONTEXT: AbstractContextManager[None] = nullcontext()
_exporter: Exporter | None = None


def error_type(error: BaseException) -> str:
    """Returns what an exception is called in traces: see `Span`."""
    if isinstance(error, ServiceError):
        return error.reason
    return "CANCELLED" if isinstance(error, asyncio.CancelledError) else type(error).__name__


def is_exporting() -> bool:
    """Returns whether spans go anywhere."""
    return _exporter is not None


def span(
    name: str,
    kind: Kind = "internal",
    attributes: Mapping[str, Value] = NOTHING,
    *,
    start: float | None = None,
    **ours: Value,
) -> Span:
    """Returns a span below the current one, to be entered at once.

    Args:
        name: as in the catalog.
        kind: "server": of a caller's request; "client": of a call of another process.
        attributes: those of conventions that are known by now.
        start: when it began, if before now, as all times of `time.monotonic()`.
        **ours: attributes of our own.
    """
    return _exporter.span(name, kind, start, {**attributes, **ours}) if _exporter else NO_SPAN


def add_span(name: str, start: float, end: float, **attributes: Value) -> None:
    """Adds a span of the past below the current one; times of `time.monotonic()`."""
    if _exporter:
        _exporter.add_span(name, start, end, attributes)


def current_span() -> Span:
    """Returns the span in whose block the caller is."""
    return _exporter.current_span() if _exporter else NO_SPAN


def trace_metadata() -> tuple[tuple[str, str], ...]:
    """Returns call metadata (W3C's headers) that makes the current span the callee's parent."""
    return _exporter.metadata() if _exporter else ()


def continued(metadata: Metadata | None) -> AbstractContextManager[None]:
    """Makes the caller's span, as its headers or call metadata name it, the current one.

    A trace begins within the block where they name none, or are malformed.
    """
    return _exporter.continued(metadata or ()) if _exporter else _NO_CONTEXT


def observe(name: str, seconds: float, attributes: Mapping[str, Value]) -> None:
    """Adds a duration to one of the histograms that `exporting` was told of."""
    if _exporter:
        _exporter.observe(name, seconds, attributes)


@contextmanager
def exporting(
    service_name: str,
    endpoint: str | None,
    histograms: Mapping[str, Sequence[float]] | None = None,
) -> Iterator[None]:
    """Exports what the process does in the block; without an endpoint nothing.

    A collector that is slow or gone costs no request anything: what it does not take is dropped.

    Args:
        service_name: as traces show the process.
        endpoint: URL of the collector; OTEL_* variables say the rest.
        histograms: those of durations that there are, with the bounds of their buckets in seconds.
    """
    global _exporter
    if endpoint is None:
        yield
        return
    from protos.process.otlp import open_exporter

    with open_exporter(service_name, endpoint, histograms or {}) as _exporter:
        try:
            yield
        finally:
            _exporter = None
