"""A collector that keeps what it is sent: OTLP over gRPC, on a free port."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2
from opentelemetry.proto.common.v1 import common_pb2
from opentelemetry.proto.metrics.v1 import metrics_pb2
from opentelemetry.proto.trace.v1 import trace_pb2

TRACE_SERVICE = "opentelemetry.proto.collector.trace.v1.TraceService"
METRICS_SERVICE = "opentelemetry.proto.collector.metrics.v1.MetricsService"
PATIENCE_SECONDS = 30.0
POLL_SECONDS = 0.02
KINDS = {
    trace_pb2.Span.SPAN_KIND_INTERNAL: "internal",
    trace_pb2.Span.SPAN_KIND_SERVER: "server",
    trace_pb2.Span.SPAN_KIND_CLIENT: "client",
}
Attributes = dict[str, Any]


@dataclass(frozen=True)
class Event:
    """An event of a span; its time is of the Unix clock, in seconds."""

    name: str
    time: float
    attributes: Attributes


@dataclass(frozen=True)
class Span:
    """A span as it came; times are of the Unix clock, in seconds."""

    name: str
    kind: str
    trace_id: str
    span_id: str
    parent_id: str
    start: float
    end: float
    attributes: Attributes
    events: Sequence[Event]
    is_failed: bool
    resource: Attributes

    @property
    def process(self) -> str:
        """The program, as `gateway`."""
        return str(self.resource["service.name"]).removeprefix("internvl-")

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.end - self.start

    def moment(self, event: str) -> float:
        """Returns when it had its last event of this name."""
        return max(one.time for one in self.events if one.name == event)


@dataclass(frozen=True)
class Point:
    """A histogram of one set of attributes."""

    metric: str
    unit: str
    bounds: Sequence[float]
    count: int
    sum: float
    attributes: Attributes


@dataclass
class Receiver:
    """What has come.

    Attributes:
        endpoint: where it is sent to.
        raw: all messages, as bytes.
    """

    endpoint: str = ""
    spans: list[Span] = field(default_factory=list)
    points: list[Point] = field(default_factory=list)
    raw: list[bytes] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def take_spans(self, request: trace_service_pb2.ExportTraceServiceRequest) -> None:
        """Keeps the spans of a message."""
        spans = [
            _span(span, _attributes(resource.resource.attributes))
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]
        with self._lock:
            self.raw.append(request.SerializeToString())
            self.spans += spans

    def take_metrics(self, request: metrics_service_pb2.ExportMetricsServiceRequest) -> None:
        """Keeps the latest histograms, which count from the process's start on."""
        points = [
            _point(metric, point)
            for resource in request.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
            for point in metric.histogram.data_points
        ]
        with self._lock:
            self.raw.append(request.SerializeToString())
            self.points = points

    def trace(self, trace_id: str) -> list[Span]:
        """Returns the spans of a trace that have come, the earliest first."""
        with self._lock:
            found = [span for span in self.spans if span.trace_id == trace_id]
        return sorted(found, key=lambda span: span.start)

    async def wait_for_points(self, count: int) -> list[Point]:
        """Returns the histograms once there are so many."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while len(self.points) < count:
            assert time.monotonic() < deadline, self.points
            await asyncio.sleep(POLL_SECONDS)
        return self.points

    def named(self, name: str) -> list[Span]:
        """Returns the spans of this name, the earliest first."""
        with self._lock:
            found = [span for span in self.spans if span.name == name]
        return sorted(found, key=lambda span: span.start)

    async def wait_for(self, name: str, count: int = 1) -> list[Span]:
        """Returns the spans of this name once there are so many."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while len(found := self.named(name)) < count:
            assert time.monotonic() < deadline, f"{len(found)} of {count} spans {name}"
            await asyncio.sleep(POLL_SECONDS)
        return found


def _attributes(pairs: Sequence[common_pb2.KeyValue]) -> Attributes:
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(value: common_pb2.AnyValue) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(one) for one in value.array_value.values]
    return getattr(value, kind) if kind else None


def _span(span: trace_pb2.Span, resource: Attributes) -> Span:
    return Span(
        name=span.name,
        kind=KINDS[span.kind],
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex(),
        start=span.start_time_unix_nano / 1e9,
        end=span.end_time_unix_nano / 1e9,
        attributes=_attributes(span.attributes),
        events=[
            Event(event.name, event.time_unix_nano / 1e9, _attributes(event.attributes))
            for event in span.events
        ],
        is_failed=span.status.code == trace_pb2.Status.STATUS_CODE_ERROR,
        resource=resource,
    )


def _point(metric: metrics_pb2.Metric, point: metrics_pb2.HistogramDataPoint) -> Point:
    return Point(
        metric=metric.name,
        unit=metric.unit,
        bounds=[*point.explicit_bounds],
        count=point.count,
        sum=point.sum,
        attributes=_attributes(point.attributes),
    )


@contextmanager
def receiving() -> Iterator[Receiver]:
    """Runs a collector in threads of its own: the loop of a test may stand still meanwhile."""
    receiver = Receiver()
    server = grpc.server(ThreadPoolExecutor(2))
    server.add_generic_rpc_handlers(
        (
            _handler(
                TRACE_SERVICE,
                trace_service_pb2.ExportTraceServiceRequest,
                trace_service_pb2.ExportTraceServiceResponse,
                receiver.take_spans,
            ),
            _handler(
                METRICS_SERVICE,
                metrics_service_pb2.ExportMetricsServiceRequest,
                metrics_service_pb2.ExportMetricsServiceResponse,
                receiver.take_metrics,
            ),
        )
    )
    receiver.endpoint = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        yield receiver
    finally:
        server.stop(None).wait()


def _handler(
    service: str, request: Any, response: Any, take: Callable[[Any], None]
) -> grpc.GenericRpcHandler:
    """Returns what serves a collector's one method, by its messages' classes."""

    def export(message: Any, _: Any) -> Any:
        take(message)
        return response()

    handler = grpc.unary_unary_rpc_method_handler(
        export, request.FromString, response.SerializeToString
    )
    return grpc.method_handlers_generic_handler(service, {"Export": handler})
