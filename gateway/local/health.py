"""Whether a service takes requests."""

from __future__ import annotations

import json

from protos.process import probe
from protos.process.probe import HEALTHY, ProbeTLS, RefusedError, SilentError, ask_http

SILENT = "no answer"


def grpc_health(address: str, tls: ProbeTLS | None = None) -> str:
    """Returns HEALTHY, DRAINING or SILENT for a gRPC service."""
    try:
        return probe.grpc_health(address, tls)
    except (SilentError, OSError):
        return SILENT


def gateway_health(url: str, tls: ProbeTLS | None = None) -> str:
    """Returns HEALTHY, SILENT, or why a gateway is not ready."""
    try:
        status, body = ask_http(f"{url}/health/ready", tls)
        reasons = json.loads(body).get("reasons", {})
    except RefusedError:
        return HEALTHY  # it listens, and tells more to those alone whose certificates it knows
    except (SilentError, OSError, ValueError):
        return SILENT
    return HEALTHY if status == 200 else "; ".join(reasons.values())


def page_url(url: str, tls: ProbeTLS | None = None) -> str:
    """Returns where a gateway has its page; empty where it has none, or does not answer."""
    try:
        status, _ = ask_http(f"{url}/", tls, "HEAD")
    except (SilentError, OSError):
        return ""
    return f"{url}/" if status == 200 else ""
