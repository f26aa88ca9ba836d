"""Who is warned of ports in plain text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import structlog.testing
import trustme

from protos.process.exposure import warn_of_plain_text
from protos.process.settings import ServingSettings
from tests.https import https_options, issue


def warnings(**options: Any) -> list[Any]:
    with structlog.testing.capture_logs() as logs:
        warn_of_plain_text(ServingSettings(**options))
    return logs


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.1.2.3", "203.0.113.7", "llm.example"])
def test_a_port_that_others_reach(host: str) -> None:
    (warning,) = warnings(host=host, metrics_port=0)
    assert (warning["event"], warning["log_level"]) == ("connections_plain", "warning")
    assert warning["host"] == host
    assert "--tls-certificate-file" in warning["warning"]


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_a_port_that_this_machine_alone_reaches(host: str) -> None:
    assert warnings(host=host, metrics_port=0) == []


def test_an_encrypted_port_beside_one_of_metrics(tmp_path: Path) -> None:
    options = https_options(issue(trustme.CA(), tmp_path, "llm.example"))
    assert warnings(host="0.0.0.0", **options) == []
    (warning,) = warnings(host="0.0.0.0", metrics_port=9090, **options)
    assert (warning["event"], warning["port"]) == ("metrics_plain", 9090)
