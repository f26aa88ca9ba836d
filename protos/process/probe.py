"""`internvl-probe`: asks a service or a gateway whether it takes requests, by TLS if need be.

For what looks after processes, every few seconds: so it imports little.
"""

from __future__ import annotations

import os
import ssl
import sys

# The standard library reads a certificate that no peer has shown by this function alone.
from _ssl import _test_decode_cert  # type: ignore[attr-defined]
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from pathlib import Path
from urllib.parse import urlsplit

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

HEALTHY = "serving"
DRAINING = "draining"
# The gateway asks both services before it answers.
PROBE_SECONDS = 5.0
NO_PROXY = ("grpc.enable_http_proxy", 0)


class SilentError(Exception):
    """There is no answer; the message says why not."""


class RefusedError(SilentError):
    """The server speaks TLS, but ends the connection: it wants another certificate of who asks."""


@dataclass(frozen=True)
class ProbeTLS:
    """How a probe speaks TLS.

    Attributes:
        trusted: file of the authorities whose servers are believed, or of the very certificate that
            the server has; None: the machine's authorities.
        is_pinned: whether it is the latter; the server may be asked by any name then.
        certificate, key: files of the probe's own, for a server that wants to know who asks.
    """

    trusted: Path | None = None
    is_pinned: bool = False
    certificate: Path | None = None
    key: Path | None = None

    @classmethod
    def of_server(cls, certificate: Path, key: Path) -> ProbeTLS:
        """Returns that of who has the server's own files: what it shows is what it asks for."""
        return cls(certificate, True, certificate, key)

    def channel(self, address: str) -> grpc.Channel:
        """Returns a channel to a gRPC service."""
        trusted, certificate, key = map(_content, (self.trusted, self.certificate, self.key))
        options: list[tuple[str, int | str]] = [NO_PROXY]
        if self.is_pinned and self.trusted:
            options.append(("grpc.ssl_target_name_override", _name(self.trusted)))
        return grpc.secure_channel(
            address, grpc.ssl_channel_credentials(trusted, key, certificate), options
        )

    def context(self) -> ssl.SSLContext:
        """Returns the rules by which HTTPS is asked."""
        context = ssl.create_default_context(cafile=self.trusted)
        if self.is_pinned:
            context.check_hostname = False
            context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        if self.certificate:
            context.load_cert_chain(self.certificate, self.key)
        return context


def _content(path: Path | None) -> bytes | None:
    return path.read_bytes() if path else None


def _name(certificate: Path) -> str:
    """Returns a name that a certificate is for; gRPC asks for one."""
    names = _test_decode_cert(str(certificate)).get("subjectAltName", ())
    return next((name for kind, name in names if kind in ("DNS", "IP Address")), "")


def grpc_health(
    address: str, tls: ProbeTLS | None = None, service: str = "", seconds: float = PROBE_SECONDS
) -> str:
    """Returns HEALTHY or DRAINING for a gRPC service.

    Raises:
        SilentError: it does not answer.
        OSError: a file of TLS cannot be read.
    """
    channel = tls.channel(address) if tls else grpc.insecure_channel(address, [NO_PROXY])
    with channel:
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(service=service), timeout=seconds
            )
        except grpc.RpcError as error:
            raise SilentError(error.details()) from error
    return HEALTHY if answer.status == health_pb2.HealthCheckResponse.SERVING else DRAINING


def ask_http(
    url: str, tls: ProbeTLS | None = None, method: str = "GET", seconds: float = PROBE_SECONDS
) -> tuple[int, bytes]:
    """Returns status and body of an http:// or https:// URL.

    Raises:
        SilentError: there is no answer; RefusedError is one.
        OSError: a file of TLS cannot be read.
    """
    parts = urlsplit(url)
    connection: HTTPConnection
    if parts.scheme == "https":
        context = (tls or ProbeTLS()).context()
        connection = HTTPSConnection(parts.netloc, timeout=seconds, context=context)
    else:
        connection = HTTPConnection(parts.netloc, timeout=seconds)
    with closing(connection):
        try:
            connection.connect()
        except OSError as error:
            raise SilentError(str(error)) from error
        try:
            connection.request(method, parts.path or "/")
            response = connection.getresponse()
            return response.status, response.read()
        except (OSError, HTTPException) as error:
            is_refused = isinstance(error, (ConnectionError, ssl.SSLError)) and tls
            raise (RefusedError if is_refused else SilentError)(str(error)) from error


def main() -> None:
    """Asks once: exit status 0 if requests are taken, else 1 and a sentence."""
    options = _parser().parse_args()
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # the sentence says it
    try:
        is_well, sentence = _ask(options)
    except SilentError as error:
        is_well, sentence = False, f"no answer: {error}"
    except (OSError, ValueError) as error:
        is_well, sentence = False, str(error)
    sys.stdout.write(f"{options.address}: {sentence}\n")
    sys.exit(0 if is_well else 1)


def _ask(options: Namespace) -> tuple[bool, str]:
    tls = _tls(options)
    if options.address.startswith(("http://", "https://")):
        status, _ = ask_http(options.address, tls, seconds=options.seconds)
        return options.alive or status == 200, f"status {status}"
    health = grpc_health(options.address, tls, options.service, options.seconds)
    return options.alive or health == HEALTHY, health


def _tls(options: Namespace) -> ProbeTLS | None:
    if bool(options.key_file) != bool(options.certificate_file):
        raise ValueError("--certificate-file and --key-file need each other")
    if options.server_certificate_file and options.ca_file:
        raise ValueError("--ca-file and --server-certificate-file exclude each other")
    trusted = options.server_certificate_file or options.ca_file
    if not trusted and not options.certificate_file:
        return None
    is_pinned = options.server_certificate_file is not None
    return ProbeTLS(trusted, is_pinned, options.certificate_file, options.key_file)


OPTIONS: Sequence[tuple[str, type, str]] = (
    ("--service", str, "gRPC name of the service, e.g. internvl.v1.LLMService; default: any"),
    ("--ca-file", Path, "file of the authorities whose servers are believed, for TLS"),
    (
        "--server-certificate-file",
        Path,
        "file of the very certificate that the server has, for who asks beside it; its name is not"
        " compared then",
    ),
    (
        "--certificate-file",
        Path,
        "file of the probe's own certificate, for a server that wants one",
    ),
    ("--key-file", Path, "file of that certificate's key"),
)


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="internvl-probe",
        description="Asks a service or a gateway whether it takes requests: exit status 0 if so.",
    )
    parser.add_argument(
        "address", help="HOST:PORT of a gRPC service, or a URL, e.g. https://HOST:PORT/health/ready"
    )
    parser.add_argument("--alive", action="store_true", help="any answer will do")
    parser.add_argument(
        "--seconds", type=float, default=PROBE_SECONDS, help="how long to wait for the answer"
    )
    for name, kind, sentence in OPTIONS:
        parser.add_argument(name, type=kind, default="" if kind is str else None, help=sentence)
    return parser


if __name__ == "__main__":
    main()
