"""The line and the spans of a call, whatever becomes of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, MutableMapping
from contextvars import Context
from typing import Any

import pytest
from opentelemetry.trace import SpanKind, StatusCode
from structlog.testing import capture_logs

from protos.errors import (
    DeadlineError,
    EngineDeadError,
    InvalidArgumentError,
    OverloadedError,
    ServiceError,
)
from protos.process.call_record import CallRecord, Stage, accounted, call_record
from tests.spans import keeping_spans

ENCODE = "internvl.v1.VisionService/EncodeImage"
PARENT = [("traceparent", f"00-{'a' * 32}-{'b' * 16}-01")]


def call(
    answer: Callable[[CallRecord], None] = lambda record: None,
    *,
    time_remaining: float | None = None,
    is_aside: bool = False,
) -> MutableMapping[str, Any]:
    """Returns the line of a call that is answered so."""
    with capture_logs() as events:
        try:
            with accounted(ENCODE, PARENT, lambda: time_remaining, is_aside=is_aside) as record:
                answer(record)
        except asyncio.CancelledError:
            pass
    (line,) = events
    return line


def fail(error: ServiceError) -> Callable[[CallRecord], None]:
    def answer(record: CallRecord) -> None:
        record.error = error

    return answer


def leave(record: CallRecord) -> None:
    raise asyncio.CancelledError


def leave_with_all(record: CallRecord) -> None:
    record.is_answered = True
    raise asyncio.CancelledError


def test_a_line_has_the_facts_and_the_stages() -> None:
    def answer(record: CallRecord) -> None:
        assert record is call_record()
        call_record().note(tile_count=7)
        record.stages.append(Stage("forward", 5.0, 5.25))
        with pytest.raises(ConnectionError), record.timed("transfer"):
            raise ConnectionError

    line = call(answer)
    assert line.pop("total_seconds") >= line.pop("transfer_seconds") >= 0
    assert line == {
        "event": "request",
        "log_level": "info",
        "route": "EncodeImage",
        "status": "OK",
        "error": None,
        "tile_count": 7,
        "forward_seconds": 0.25,
    }


def test_outside_of_calls_there_is_a_record_for_nobody() -> None:
    outside = Context()
    outside.run(call_record).note(tile_count=7)
    assert outside.run(call_record).facts == {}


@pytest.mark.parametrize(
    ("answer", "time_remaining", "status", "error", "level"),
    [
        (fail(InvalidArgumentError("bad")), None, "INVALID_ARGUMENT", "INVALID_FIELD", "info"),
        (fail(OverloadedError("full")), None, "RESOURCE_EXHAUSTED", "QUEUE_FULL", "info"),
        (fail(DeadlineError("late")), None, "DEADLINE_EXCEEDED", "DEADLINE_EXCEEDED", "info"),
        (fail(EngineDeadError("dead")), None, "UNAVAILABLE", "ENGINE_DEAD", "warning"),
        (fail(ServiceError("bug")), None, "INTERNAL", "INTERNAL", "warning"),
        (leave, None, "CANCELLED", None, "info"),
        (leave, 5.0, "CANCELLED", None, "info"),
        (leave, 0.0, "DEADLINE_EXCEEDED", None, "info"),
        (leave_with_all, 0.0, "OK", None, "info"),
    ],
)
def test_a_line_says_how_the_call_ended(
    answer: Callable[[CallRecord], None],
    time_remaining: float | None,
    status: str,
    error: str | None,
    level: str,
) -> None:
    line = call(answer, time_remaining=time_remaining)
    assert (line["status"], line["error"], line["log_level"]) == (status, error, level)


@pytest.mark.parametrize(
    ("answer", "level"),
    [
        (lambda record: None, "debug"),
        (leave, "debug"),
        (fail(OverloadedError("full")), "info"),
        (fail(ServiceError("bug")), "warning"),
    ],
)
def test_questions_that_are_asked_all_the_time_are_quiet(
    answer: Callable[[CallRecord], None], level: str
) -> None:
    with keeping_spans() as spans:
        assert call(answer, is_aside=True)["log_level"] == level
    assert spans.names() == []


def test_a_call_is_a_span_with_its_stages_below_it() -> None:
    begun = time.monotonic()

    def answer(record: CallRecord) -> None:
        record.note(tile_count=7, cache_hit=False)
        names = ("worker_wait", "preprocess", "queue", "forward")
        record.stages += [Stage(name, begun, begun + 0.5) for name in names]
        record.stages.append(Stage("images", begun, begun))  # did not happen

    with keeping_spans() as spans:
        call(answer)
        served = spans[ENCODE]
        below = spans.below(served)
    assert served.kind is SpanKind.SERVER
    assert served.status.status_code is StatusCode.UNSET
    assert served.parent is not None
    assert f"{served.parent.trace_id:x}-{served.parent.span_id:x}" == PARENT[0][1][3:-3]
    assert dict(served.attributes or {}) == {
        "rpc.system.name": "grpc",
        "rpc.method": ENCODE,
        "rpc.response.status_code": "OK",
        "internvl.tile_count": 7,
        "internvl.cache_hit": False,
    }
    expected = {"vision worker wait", "vision preprocess", "vision queue", "vision vit"}
    assert {span.name for span in below} == expected
    for span in below:
        assert span.start_time is not None
        assert span.end_time is not None
        assert span.end_time - span.start_time == pytest.approx(0.5e9, abs=1e5)


@pytest.mark.parametrize(
    ("answer", "error_type", "status_code"),
    [
        (fail(OverloadedError("full")), "QUEUE_FULL", StatusCode.UNSET),
        (fail(ServiceError("bug")), "INTERNAL", StatusCode.ERROR),
        (fail(DeadlineError("late")), "DEADLINE_EXCEEDED", StatusCode.ERROR),
        (leave, None, StatusCode.UNSET),
        (leave_with_all, None, StatusCode.UNSET),
    ],
)
def test_a_span_has_failed_where_the_service_has(
    answer: Callable[[CallRecord], None], error_type: str | None, status_code: StatusCode
) -> None:
    with keeping_spans() as spans:
        call(answer)
        served = spans[ENCODE]
    assert (served.attributes or {}).get("error.type") == error_type
    assert served.status.status_code is status_code
