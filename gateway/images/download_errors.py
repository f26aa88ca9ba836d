"""Why an image did not come from its server, in a sentence that its client can act on.

A server that may not be asked never gets this far: its refusal is that of `addresses.py`.
"""

from __future__ import annotations

import errno
import os
import socket
import ssl
from dataclasses import dataclass
from enum import Enum
from http import HTTPStatus

import aiohttp


class Stage(Enum):
    """What a download waits for."""

    CONNECTION = "there was no connection to its server yet"
    ANSWER = "its server had not answered"
    BODY = "its bytes"


@dataclass
class Progress:
    """How far a download has come.

    Attributes:
        server: who is asked, as the subject of a sentence.
        named: whose name is looked up for it.
        stage: what it waits for.
        redirect_count: how often it was sent elsewhere.
        byte_count: how much of the file has come.
        content_length: the file's size as the server says, if it does.
    """

    server: str = "the image's server"
    named: str = "the host of the image's URL"
    stage: Stage = Stage.CONNECTION
    redirect_count: int = 0
    byte_count: int = 0
    content_length: int | None = None

    def bytes_so_far(self) -> str:
        """Returns "5 of 7000 bytes", or "5 bytes" of a file of unknown size."""
        total = "" if self.content_length is None else f" of {self.content_length}"
        return f"{self.byte_count}{total} bytes"


# By errno; the subject is the server.
CONNECTION_REASONS = {
    errno.ECONNREFUSED: "refused the connection: nothing listens at its port",
    errno.ETIMEDOUT: "did not take the connection",
    errno.EHOSTUNREACH: "cannot be reached from here",
    errno.ENETUNREACH: "cannot be reached from here",
    errno.ECONNRESET: "broke the connection off",
    errno.EPIPE: "broke the connection off",
}
# By OpenSSL's codes (X509_V_ERR_*); the subject is its certificate.
CERTIFICATE_REASONS = {
    9: "is not valid yet",
    10: "has expired",
    18: "is self-signed",
    19: "comes from an authority that is not trusted here",
    20: "comes from an authority that is not trusted here, or certificates between are missing",
    21: "comes from an authority that is not trusted here, or certificates between are missing",
    62: "is for another host",
    64: "is for another address",
}
TLS_REASONS = {
    "WRONG_VERSION_NUMBER": "speaks no TLS at this port; is it an http:// URL?",
    "UNSUPPORTED_PROTOCOL": "speaks only versions of TLS that are too old",
    "TLSV1_ALERT_PROTOCOL_VERSION": "speaks only versions of TLS that are too old",
}
STATUS_HINTS = {
    HTTPStatus.UNAUTHORIZED: "it wants a login",
    HTTPStatus.FORBIDDEN: "it wants other rights, e.g. a signature in the URL that is still valid,"
    " or a User-Agent that says who asks (this server's option image_user_agent)",
    HTTPStatus.NOT_FOUND: "there is nothing at this URL",
    HTTPStatus.GONE: "there is nothing at this URL any more",
    HTTPStatus.TOO_MANY_REQUESTS: "it was asked too often",
    HTTPStatus.PROXY_AUTHENTICATION_REQUIRED: "the proxy for images wants a login",
}


def failure(error: aiohttp.ClientError | OSError, progress: Progress) -> str:
    """Returns the sentence for a download that failed."""
    count = progress.redirect_count
    after = f" (after {count} redirect{'s' * (count > 1)})" if count else ""
    return f"{_failure(error, progress)}{after}"


def lateness(seconds: float, progress: Progress) -> str:
    """Returns the sentence for a download that took too long."""
    if progress.stage is Stage.BODY:
        missing = f"only {progress.bytes_so_far()} had come"
    else:
        missing = progress.stage.value
    return f"the image did not arrive within {seconds:g} s: {missing}"


def bad_status(status: int, server: str) -> str:
    """Returns the sentence for an answer that is not 200."""
    try:
        phrase = f" ({HTTPStatus(status).phrase})"
    except ValueError:
        phrase = ""
    hint = STATUS_HINTS.get(HTTPStatus(status)) if phrase else None
    return f"{server} answered with status {status}{phrase}{f': {hint}' if hint else ''}"


def _failure(error: aiohttp.ClientError | OSError, progress: Progress) -> str:
    match error:
        case aiohttp.ClientProxyConnectionError():
            return f"the proxy for images {_connection_reason(error.os_error)}"
        case aiohttp.ClientHttpProxyError():
            return bad_status(error.status, "asked for the image's server, the proxy for images")
        case aiohttp.ClientConnectorDNSError():
            return f"{progress.named} {_name_reason(error.os_error)}"
        case aiohttp.ClientConnectorCertificateError():
            return _certificate_reason(error.certificate_error)
        case aiohttp.ClientConnectorSSLError():
            return f"{progress.server} {_tls_reason(error.os_error)}"
        case aiohttp.ClientConnectorError():
            return f"{progress.server} {_connection_reason(error.os_error)}"
    if progress.stage is Stage.BODY:
        return f"{progress.server} ended after {progress.bytes_so_far()} of the image"
    if isinstance(error, aiohttp.ClientResponseError):
        return f"{progress.server} answered with what is not HTTP"
    return f"{progress.server} ended the connection without an answer"


def _connection_reason(error: OSError) -> str:
    if reason := CONNECTION_REASONS.get(error.errno or 0):
        return reason
    detail = f" ({os.strerror(error.errno)})" if error.errno else ""
    return f"cannot be reached{detail}"


def _name_reason(error: OSError) -> str:
    if error.errno == socket.EAI_NONAME:
        return "has no address: no name server knows it"
    return "could not be looked up: no name server answered"


def _certificate_reason(error: Exception) -> str:
    code = error.verify_code if isinstance(error, ssl.SSLCertVerificationError) else None
    reason = CERTIFICATE_REASONS.get(code or 0, f"is not valid (OpenSSL's code {code})")
    return f"the certificate of the image's server {reason}"


def _tls_reason(error: OSError) -> str:
    name = getattr(error, "reason", None) or "no reason given"
    return TLS_REASONS.get(name, f"does not agree on TLS ({name})")
