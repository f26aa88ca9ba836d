"""How a process finds OpenTelemetry's collector: an option, and the variable beside it."""

from __future__ import annotations

import os
from importlib.metadata import PackageNotFoundError, version
from typing import Literal, cast, get_args
from urllib.parse import urlsplit

OTLPProtocol = Literal["grpc", "http/protobuf"]
# OpenTelemetry's own variable, beside which its others are read as they are.
OTLP_PROTOCOL_VARIABLE = "OTEL_EXPORTER_OTLP_PROTOCOL"


def otlp_protocol() -> OTLPProtocol:
    """Returns how a collector is spoken to, as the environment has it.

    Raises:
        ValueError: it has something else.
    """
    protocol = os.environ.get(OTLP_PROTOCOL_VARIABLE, "grpc")
    if protocol not in get_args(OTLPProtocol):
        known = ", ".join(get_args(OTLPProtocol))
        raise ValueError(f"{OTLP_PROTOCOL_VARIABLE} is {protocol!r}; known: {known}")
    return cast(OTLPProtocol, protocol)


def usable_collector(endpoint: str) -> str:
    """Returns the URL of a collector that this process can export to.

    Raises:
        ValueError: it is none, or OpenTelemetry is not installed, or its variable is wrong.
    """
    url = urlsplit(endpoint)
    if url.scheme not in ("http", "https") or not url.hostname:
        raise ValueError("a collector's URL begins with http:// or https:// and a host")
    if url.username is not None:
        raise ValueError(
            "a collector's URL is shown, and so holds no password; OTEL_EXPORTER_OTLP_HEADERS may"
        )
    _ = url.port  # raises ValueError where it is none
    otlp_protocol()
    try:
        version("opentelemetry-exporter-otlp")  # which requires the SDK
    except PackageNotFoundError as error:
        raise ValueError(
            "OpenTelemetry is not installed; it is with the extra otel:"
            " pip install 'internvl-serving[otel]'"
        ) from error
    return endpoint
