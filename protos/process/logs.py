"""Log set-up for every process, and the request id as context variable and call metadata.

One JSON object (or, for people, one line, coloured on a terminal) an event on standard error.
Prompts, images, URLs and keys are never logged, at no level.
"""

from __future__ import annotations

import logging
import re
import sys
import uuid
from collections.abc import Sequence
from typing import Any, Literal

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from protos.process.log_sampling import InfoSampler
from protos.process.tracebacks import (
    log_unhandled,
    wordless_traceback,
    write_wordless_traceback,
)
from protos.process.tracing import trace_metadata

REQUEST_ID_KEY = "x-request-id"
MAX_REQUEST_ID_LENGTH = 128
LogFormat = Literal["json", "console"]
LogLevel = Literal["debug", "info", "warning", "error"]


DEFAULT_LINES_PER_SECOND = 100.0
# What asyncio writes behind its own words: the arguments of callbacks, which may be bytes of a
# body, and tasks with the texts of their exceptions.
ASYNCIO_VALUES = re.compile(r"[(<][^)].*|\n.*", re.DOTALL)


def configure(
    level: LogLevel, fmt: LogFormat, lines_per_second: float = DEFAULT_LINES_PER_SECOND
) -> None:
    """Sends structlog's events and the standard library's warnings to standard error.

    Above `lines_per_second` info lines of some requests are left out (`InfoSampler`).
    """
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    renderer = _json_renderer() if fmt == "json" else _console_renderer()
    structlog.configure(
        processors=[*shared, InfoSampler(lines_per_second), *renderer],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
    )
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[_without_values, *shared],
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderer],
        use_get_message=False,  # the arguments of libraries' lines may be what a client sent
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    handler.addFilter(_is_told)
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    log_unhandled()


def _json_renderer() -> list[Processor]:
    # In ASCII: nothing in it can end a line, or tell a terminal what to do.
    return [
        structlog.processors.ExceptionRenderer(wordless_traceback),
        structlog.processors.JSONRenderer(ensure_ascii=True),
    ]


def _console_renderer() -> list[Processor]:
    return [
        _printable,
        structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(),
            exception_formatter=write_wordless_traceback,
            repr_native_str=True,
        ),
    ]


def _printable(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """Escapes an event's name as the renderer does all else: a library's may have line breaks."""
    if not str(event["event"]).isprintable():
        event["event"] = repr(event["event"])
    return event


def _is_told(record: logging.LogRecord) -> bool:
    """Leaves out that gRPC could not write to a caller who has gone, which anybody can bring about.

    It forgives that itself once it knows that the caller has gone, which is often too late.
    """
    error = record.exc_info and record.exc_info[0]
    return not error or error.__name__ != "ExecuteBatchError"


def _without_values(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    if event["_record"].name == "asyncio":
        event["event"] = ASYNCIO_VALUES.sub("", event["event"]).rstrip()
    return event


def new_request_id() -> str:
    return uuid.uuid4().hex


def bind_request_id(request_id: str) -> None:
    """Puts the id into every log event of this task; forgets what an earlier request bound."""
    structlog.contextvars.clear_contextvars()
    structlog.contextvars.bind_contextvars(request_id=request_id)


def bind_trace_id(trace_id: str) -> None:
    """Puts the trace's id into every log event of this task; none where it is empty."""
    if trace_id:
        structlog.contextvars.bind_contextvars(trace_id=trace_id)


def request_metadata() -> tuple[tuple[str, str], ...]:
    """Returns call metadata that carries this task's request id and trace to a service."""
    request_id: str = structlog.contextvars.get_contextvars().get("request_id", "")
    return (*(((REQUEST_ID_KEY, request_id),) if request_id else ()), *trace_metadata())


def request_id_of(metadata: Sequence[tuple[str, Any]] | None) -> str:
    """Returns the request id that a call's metadata carries; a new one for none or a long one."""
    for key, value in metadata or ():
        if key == REQUEST_ID_KEY and 0 < len(value) <= MAX_REQUEST_ID_LENGTH:
            return str(value)
    return new_request_id()
