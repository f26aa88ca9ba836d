"""Spans that are kept here instead of being exported."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from gateway.traces import HISTOGRAMS
from protos.process import tracing
from protos.process.otlp import OTLPExporter


class Spans:
    """The spans that have ended, by name."""

    def __init__(self, kept: InMemorySpanExporter) -> None:
        self._kept = kept

    def __getitem__(self, name: str) -> ReadableSpan:
        (found,) = [span for span in self._kept.get_finished_spans() if span.name == name]
        return found

    def names(self) -> list[str]:
        """Returns the names, in the order in which they began."""
        return [span.name for span in sorted(self._kept.get_finished_spans(), key=_start)]

    def below(self, parent: ReadableSpan) -> list[ReadableSpan]:
        """Returns a span's children, in the order in which they began."""
        spans = self._kept.get_finished_spans()
        return sorted((span for span in spans if span.parent == parent.context), key=_start)

    def clear(self) -> None:
        """Forgets them."""
        self._kept.clear()


def _start(span: ReadableSpan) -> int:
    assert span.start_time is not None
    return span.start_time


@contextmanager
def keeping_spans() -> Iterator[Spans]:
    """Keeps what this process spans in the block."""
    kept = InMemorySpanExporter()
    tracers = TracerProvider()
    tracers.add_span_processor(SimpleSpanProcessor(kept))
    exporter = OTLPExporter(tracers.get_tracer("test"), MeterProvider(), HISTOGRAMS)
    with patch.object(tracing, "_exporter", exporter):
        yield Spans(kept)
