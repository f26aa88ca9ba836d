"""What one call of a service came to: its line in the log, and its spans."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

import structlog

from protos.errors import ServiceError
from protos.process.logs import bind_trace_id
from protos.process.tracing import (
    NO_SPAN,
    Metadata,
    Span,
    Value,
    add_span,
    continued,
    is_exporting,
    span,
)

logger = structlog.get_logger()

# Codes of gRPC, by which the service itself has failed.
FAILURES = ("INTERNAL", "UNAVAILABLE", "DATA_LOSS")
# Further ones of spans that have failed, by the conventions for a server's.
FAILED_SPANS = (*FAILURES, "DEADLINE_EXCEEDED")
# Those of a question that is asked all the time, for as long as its caller likes.
QUIET = ("OK", "CANCELLED")
# Stages whose spans have other names than their fields and metrics.
SPAN_NAMES = {"worker_wait": "worker wait", "forward": "vit"}


@dataclass(frozen=True)
class Stage:
    """A part of a call's time; its start and its end are times of `time.monotonic`."""

    name: str
    start: float
    end: float

    @property
    def seconds(self) -> float:
        return self.end - self.start


@dataclass(eq=False)
class CallRecord:
    """Filled while a call is answered, by whoever answers it.

    Attributes:
        arrival: when it came, as all times of `time.monotonic`.
        facts: fields of its line and attributes of its span: counts, never what it said.
        stages: where its time went.
        is_answered: whether its answer is whole: who ends it then has not given it up.
        error: what ended it, if an error did.
    """

    arrival: float = field(default_factory=time.monotonic)
    facts: dict[str, Value] = field(default_factory=dict)
    stages: list[Stage] = field(default_factory=list)
    is_answered: bool = False
    error: ServiceError | None = None

    def note(self, **facts: Value) -> None:
        self.facts |= facts

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Times a stage, even one that fails."""
        start = time.monotonic()
        try:
            yield
        finally:
            self.stages.append(Stage(name, start, time.monotonic()))


_record: ContextVar[CallRecord] = ContextVar("call_record")


def call_record() -> CallRecord:
    """Returns the record of the call that this task answers; outside of calls one for nobody."""
    return _record.get(None) or CallRecord()


@contextmanager
def accounted(
    method: str,
    metadata: Metadata | None,
    time_remaining: Callable[[], float | None],
    *,
    is_aside: bool,
) -> Iterator[CallRecord]:
    """Yields the record of a call, and tells log and trace of it when the block ends.

    Args:
        method: the full name, e.g. "internvl.v1.LLMService/Generate".
        metadata: the call's, which may name the caller's span.
        time_remaining: the seconds until the call's deadline; None without one.
        is_aside: whether it is asked all the time, and of no weight: it has no span.
    """
    _record.set(record := CallRecord())
    exits, served, status = ExitStack(), NO_SPAN, "OK"
    if not is_aside:
        exits.enter_context(continued(metadata))
        rpc = {"rpc.system.name": "grpc", "rpc.method": method}
        served = exits.enter_context(span(method, "server", rpc, start=record.arrival))
        bind_trace_id(served.trace_id)
    try:
        yield record
    except (asyncio.CancelledError, GeneratorExit):
        if not record.is_answered:
            status = "DEADLINE_EXCEEDED" if time_remaining() == 0 else "CANCELLED"
        raise
    finally:
        status = record.error.code.name if record.error else status
        _log(method, record, status, is_aside=is_aside)
        if is_exporting():
            _tell(served, method, record, status)
        exits.close()


def _log(method: str, record: CallRecord, status: str, *, is_aside: bool) -> None:
    level = logging.DEBUG if is_aside and status in QUIET else logging.INFO
    logger.log(
        logging.WARNING if status in FAILURES else level,
        "request",
        route=method.rpartition("/")[2],
        status=status,
        error=record.error and record.error.reason,
        total_seconds=round(time.monotonic() - record.arrival, 6),
        **record.facts,
        **{f"{stage.name}_seconds": round(stage.seconds, 6) for stage in record.stages},
    )


def _tell(served: Span, method: str, record: CallRecord, status: str) -> None:
    """Tells a call's span what came of it, and adds a span below it for each stage."""
    served.set("rpc.response.status_code", status)
    for name, value in record.facts.items():
        served.set(name, value)
    error_type = record.error.reason if record.error else status
    if status in FAILED_SPANS:
        served.fail(error_type)
    elif record.error:  # by its caller's fault
        served.set("error.type", error_type)
    service = method.partition("/")[0].rpartition(".")[2].removesuffix("Service").lower()
    for stage in record.stages:
        if stage.end > stage.start:
            name = SPAN_NAMES.get(stage.name, stage.name)
            add_span(f"{service} {name}", stage.start, stage.end)
