"""Spans and histograms by OpenTelemetry's SDK, and on to a collector by OTLP (extra `otel`)."""

from __future__ import annotations

import logging
import os
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import metadata
from types import TracebackType

import structlog
from opentelemetry import context, trace
from opentelemetry.sdk.environment_variables import OTEL_EXPORTER_OTLP_ENDPOINT
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import MetricExporter, PeriodicExportingMetricReader
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from protos.process.otlp_options import OTLPProtocol, otlp_protocol
from protos.process.rarely import Rarely
from protos.process.tracing import FLUSH_SECONDS, Kind, Metadata, Span, Value, error_type

logger = structlog.get_logger()

OURS = "internvl."
KINDS = {
    "internal": trace.SpanKind.INTERNAL,
    "server": trace.SpanKind.SERVER,
    "client": trace.SpanKind.CLIENT,
}
W3C = TraceContextTextMapPropagator()
# After a line in the log that says that the collector does not take what it is sent.
QUIET_SECONDS = 60.0


def _named(attributes: Mapping[str, Value]) -> dict[str, Value]:
    return {_full(name): value for name, value in attributes.items()}


def _full(name: str) -> str:
    return name if "." in name else OURS + name


def _unix_ns(monotonic: float) -> int:
    """Returns a time of `time.monotonic()` in nanoseconds of the clock that traces show."""
    return time.time_ns() - time.monotonic_ns() + round(monotonic * 1e9)


class OTLPSpan:
    """A span of the SDK's.

    The context of before is set again rather than got back by its token: the generator of a call
    that is given up may be closed in another task, where the token is of no use.
    """

    def __init__(self, span: trace.Span) -> None:
        self._span = span

    @property
    def trace_id(self) -> str:
        context_ = self._span.get_span_context()
        return trace.format_trace_id(context_.trace_id) if context_.is_valid else ""

    def set(self, name: str, value: Value | None) -> None:
        if value is not None:
            self._span.set_attribute(_full(name), value)

    def event(self, name: str, at: float | None = None, **attributes: Value) -> None:
        self._span.add_event(name, _named(attributes), None if at is None else _unix_ns(at))

    def fail(self, error_type: str) -> None:
        self._span.set_attribute("error.type", error_type)
        self._span.set_status(trace.StatusCode.ERROR)

    def __enter__(self) -> OTLPSpan:
        self._former = context.get_current()
        context.attach(trace.set_span_in_context(self._span))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        context.attach(self._former)
        if error is not None and not isinstance(error, GeneratorExit):
            self.fail(error_type(error))
        self._span.end()


class OTLPExporter:
    """Makes spans of the SDK's, and keeps its histograms."""

    def __init__(
        self,
        tracer: trace.Tracer,
        meters: MeterProvider | None,
        histograms: Mapping[str, Sequence[float]],
    ) -> None:
        self._tracer = tracer
        meter = meters.get_meter(__name__) if meters else None
        self._histograms = {
            name: meter.create_histogram(name, "s", explicit_bucket_boundaries_advisory=bounds)
            for name, bounds in histograms.items()
            if meter
        }

    def span(
        self, name: str, kind: Kind, start: float | None, attributes: Mapping[str, Value]
    ) -> Span:
        start_ns = None if start is None else _unix_ns(start)
        return OTLPSpan(
            self._tracer.start_span(
                name, kind=KINDS[kind], attributes=_named(attributes), start_time=start_ns
            )
        )

    def add_span(
        self, name: str, start: float, end: float, attributes: Mapping[str, Value]
    ) -> None:
        span = self._tracer.start_span(
            name, attributes=_named(attributes), start_time=_unix_ns(start)
        )
        span.end(_unix_ns(end))

    def current_span(self) -> Span:
        return OTLPSpan(trace.get_current_span())

    def metadata(self) -> tuple[tuple[str, str], ...]:
        headers: dict[str, str] = {}
        W3C.inject(headers)
        return tuple(headers.items())

    @contextmanager
    def continued(self, metadata: Metadata) -> Iterator[None]:
        headers = {name.lower(): value for name, value in metadata if name.lower() in W3C.fields}
        former = context.get_current()
        context.attach(W3C.extract(headers, context.Context()))
        try:
            yield
        finally:
            context.attach(former)

    def observe(self, name: str, seconds: float, attributes: Mapping[str, Value]) -> None:
        self._histograms[name].record(seconds, _named(attributes))


@contextmanager
def open_exporter(
    service_name: str, endpoint: str, histograms: Mapping[str, Sequence[float]]
) -> Iterator[OTLPExporter]:
    """Yields what exports to a collector; on leaving it has FLUSH_SECONDS for what is left.

    Raises:
        OSError: a variable of OpenTelemetry's has a value that its SDK does not take.
    """
    # By the variable rather than by an argument: OTLP over HTTP adds its paths to that alone.
    os.environ[OTEL_EXPORTER_OTLP_ENDPOINT] = endpoint
    try:
        tracers, meters = _providers(_resource(service_name), has_histograms=bool(histograms))
    except Exception as error:  # ValueError, and some that are Exceptions alone
        raise OSError(f"one of the variables OTEL_* cannot be used: {error}") from error
    with _complaints_logged():
        try:
            yield OTLPExporter(tracers.get_tracer(__name__), meters, histograms)
        finally:
            _end(*([tracers] if meters is None else [tracers, meters]))


def _providers(
    resource: Resource, *, has_histograms: bool
) -> tuple[TracerProvider, MeterProvider | None]:
    spans, metrics = _exporters(otlp_protocol())
    tracers = TracerProvider(resource=resource, shutdown_on_exit=False)
    tracers.add_span_processor(BatchSpanProcessor(spans))
    if not has_histograms:
        return tracers, None
    readers = [PeriodicExportingMetricReader(metrics)]
    return tracers, MeterProvider(readers, resource, shutdown_on_exit=False)


def _exporters(protocol: OTLPProtocol) -> tuple[SpanExporter, MetricExporter]:
    if protocol == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import (
            OTLPMetricExporter as GrpcMetricExporter,
        )
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import (
            OTLPSpanExporter as GrpcSpanExporter,
        )

        return GrpcSpanExporter(), GrpcMetricExporter()
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    return OTLPSpanExporter(), OTLPMetricExporter()


def _resource(service_name: str) -> Resource:
    """Returns what the process is; OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES go before it."""
    ours = Resource.create(
        {
            "service.name": service_name,
            "service.version": _version(),
            "service.instance.id": str(uuid.uuid4()),
        }
    )
    return ours.merge(OTELResourceDetector().detect())


def _version() -> str:
    try:
        return metadata.version("internvl-serving")
    except metadata.PackageNotFoundError:  # the code runs from its files
        return ""


def _end(*providers: TracerProvider | MeterProvider) -> None:
    """Sends what is left, for so long as it may take: the SDK itself would wait for a minute."""
    endings = [threading.Thread(target=each.shutdown, daemon=True) for each in providers]
    for ending in endings:
        ending.start()
    deadline = time.monotonic() + FLUSH_SECONDS
    for ending in endings:
        ending.join(max(0.0, deadline - time.monotonic()))
        if ending.is_alive():
            logger.warning("telemetry_lost", seconds=FLUSH_SECONDS)


@contextmanager
def _complaints_logged() -> Iterator[None]:
    complaints = _Complaints()
    library = logging.getLogger("opentelemetry")
    library.addHandler(complaints)
    propagates, library.propagate = library.propagate, False
    try:
        yield
    finally:
        library.removeHandler(complaints)
        library.propagate = propagates


class _Complaints(logging.Handler):
    """Logs what the SDK complains of, once in a while: it does so with each batch."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._rarely = Rarely(QUIET_SECONDS)

    def emit(self, record: logging.LogRecord) -> None:
        if self._rarely.lets():
            logger.warning("telemetry_failed", details=record.getMessage())
