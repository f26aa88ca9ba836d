"""Spans where nobody gets them, and what is refused where somebody should."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import PackageNotFoundError

import pytest

from gateway.settings import Settings
from protos.process import tracing
from protos.process.settings import read_settings

ENDPOINT = "http://127.0.0.1:4317"
PROGRAM = """
import sys
import gateway.__main__, protos.process.server
from protos.process import tracing
with tracing.exporting("internvl-gateway", None), tracing.span("body", a=1) as body:
    body.set("b", 1)
    tracing.observe("gen_ai.server.request.duration", 1.0, {})
    assert tracing.trace_metadata() == ()
print([name for name in sys.modules if name.partition(".")[0] == "opentelemetry"])
"""


def test_nothing_of_opentelemetry_is_imported_while_nothing_is_exported() -> None:
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True
    )
    assert result.stdout == "[]\n"


def test_without_a_collector_all_spans_are_one_and_the_same() -> None:
    with tracing.continued([("traceparent", "x")]), tracing.span("a", tile_count=1) as span:
        assert span is tracing.NO_SPAN
        assert tracing.current_span() is tracing.span("b") is span
        assert span.trace_id == ""
    assert not tracing.is_exporting()


def settings_of(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> Settings:
    monkeypatch.setattr(sys, "argv", ["internvl-gateway", f"--otlp-endpoint={endpoint}"])
    return read_settings(Settings)


def test_a_collector_is_named_by_its_url(monkeypatch: pytest.MonkeyPatch) -> None:
    assert settings_of(monkeypatch, ENDPOINT).otlp_endpoint == ENDPOINT


@pytest.mark.parametrize("endpoint", ["localhost:4317", "ftp://localhost", "http://", ""])
def test_what_is_no_url_of_a_collector_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], endpoint: str
) -> None:
    with pytest.raises(SystemExit):
        settings_of(monkeypatch, endpoint)
    assert capsys.readouterr().err == (
        "--otlp-endpoint: a collector's URL begins with http:// or https:// and a host\n"
    )


@pytest.mark.parametrize(
    "endpoint", ["https://me:canary@localhost:4317", "http://localhost:canary"]
)
def test_a_collectors_url_has_no_password_and_a_port(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], endpoint: str
) -> None:
    with pytest.raises(SystemExit):
        settings_of(monkeypatch, endpoint)
    told = capsys.readouterr().err
    assert told.startswith("--otlp-endpoint: ")
    assert "me:" not in told


def test_an_unknown_protocol_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json")
    with pytest.raises(SystemExit):
        settings_of(monkeypatch, ENDPOINT)
    assert capsys.readouterr().err == (
        "--otlp-endpoint: OTEL_EXPORTER_OTLP_PROTOCOL is 'http/json'; known: grpc, http/protobuf\n"
    )


def test_a_missing_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr("protos.process.otlp_options.version", missing)
    with pytest.raises(SystemExit):
        settings_of(monkeypatch, ENDPOINT)
    assert "pip install 'internvl-serving[otel]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "lzma"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "soon"),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "0"),
        ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "4096"),
    ],
)
def test_a_variable_that_the_sdk_does_not_take_is_no_bug_of_ours(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "")  # is put back
    monkeypatch.setenv(name, value)
    with (
        pytest.raises(OSError, match=r"one of the variables OTEL_\* cannot be used: .+"),
        tracing.exporting("internvl-gateway", ENDPOINT, {}),
    ):
        pass
    assert not tracing.is_exporting()
