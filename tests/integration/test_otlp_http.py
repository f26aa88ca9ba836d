"""OTLP over HTTP, where the environment asks for it: both signals, each to its own path."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from gateway.traces import HISTOGRAMS
from protos.process import tracing
from tests.traces.receiver import Receiver


class Collector(HTTPServer):
    """Keeps what it is sent, and the header of each request that a collector may ask for."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.receiver = Receiver(f"http://127.0.0.1:{self.server_port}")
        self.keys: list[str | None] = []


class _Handler(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        data = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.keys.append(self.headers["x-key"])
        if self.path == "/v1/traces":
            self.server.receiver.take_spans(ExportTraceServiceRequest.FromString(data))
        elif self.path == "/v1/metrics":
            self.server.receiver.take_metrics(ExportMetricsServiceRequest.FromString(data))
        self.send_response(200 if self.path.startswith("/v1/") else 404)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        pass


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as collector:
        thread = threading.Thread(target=collector.serve_forever)
        thread.start()
        yield collector
        collector.shutdown()
        thread.join()


def test_spans_and_histograms_go_to_their_paths(
    collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-key=secret")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "")  # is put back
    receiver = collector.receiver
    with tracing.exporting("internvl-gateway", receiver.endpoint, HISTOGRAMS):
        with tracing.span("body", image_count=2):
            pass
        tracing.observe("gen_ai.server.request.duration", 0.5, {})
    (span,) = receiver.spans
    assert (span.name, span.attributes) == ("body", {"internvl.image_count": 2})
    assert [(point.metric, point.sum) for point in receiver.points] == [
        ("gen_ai.server.request.duration", 0.5)
    ]
    assert collector.keys == ["secret"] * 2
