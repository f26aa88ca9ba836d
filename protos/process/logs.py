"""Log set-up for every process, and the request id as context variable and call metadata.

One JSON object (or, for people, one coloured line) an event on standard error. Prompts, images and
URLs are never logged at info level or above.
"""

from __future__ import annotations

import logging
import sys
import uuid
from collections.abc import Sequence
from typing import Any, Literal

import structlog

from protos.process.tracing import trace_metadata

REQUEST_ID_KEY = "x-request-id"
MAX_REQUEST_ID_LENGTH = 128
LogFormat = Literal["json", "console"]
LogLevel = Literal["debug", "info", "warning", "error"]


def configure(level: LogLevel, fmt: LogFormat) -> None:
    """Sends structlog's events and the standard library's warnings to standard error."""
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    # Plain tracebacks: richer ones print local variables, which may hold prompts.
    renderer: list[structlog.typing.Processor] = (
        [
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(ensure_ascii=False),
        ]
        if fmt == "json"
        else [structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)]
    )
    structlog.configure(
        processors=[*shared, *renderer],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
    )
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderer],
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)


def new_request_id() -> str:
    """Returns a fresh request id."""
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
