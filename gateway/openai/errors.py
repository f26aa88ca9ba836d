"""How an error looks to an OpenAI client: HTTP status, headers and body."""

from __future__ import annotations

import math
from typing import Any

from aiohttp import hdrs, web

from gateway.caller_limits import CallerLimitError
from protos.errors import BY_REASON, Code, NotFoundError, OverloadedError, ServiceError

DEFAULT_STATUS = 500
HTTP_STATUS = {
    Code.INVALID_ARGUMENT: 400,
    Code.OUT_OF_RANGE: 400,
    Code.FAILED_PRECONDITION: 503,
    Code.UNAUTHENTICATED: 401,
    Code.PERMISSION_DENIED: 403,
    Code.NOT_FOUND: 404,
    Code.RESOURCE_EXHAUSTED: 429,
    Code.UNAVAILABLE: 503,
    Code.DEADLINE_EXCEEDED: 504,
}
# OpenAI's names; any other code is our reason in lower case.
CODES = {
    "INTERNAL": "server_error",
    "INVALID_FIELD": "invalid_value",
    "NOT_FOUND": "model_not_found",
}
TYPES = {403: "permission_error", 429: "rate_limit_error"}
HTTP_CODES = {
    404: "path_not_found",
    405: "method_not_allowed",
    408: "request_timeout",
    413: "request_too_large",
}
OVERLOAD_RETRY_SECONDS = 1.0
CHALLENGE = 'Bearer realm="internvl-gateway"'


class HTTPRefusalError(ServiceError):
    """What is refused before the request is read: a path, a method, the size of the body.

    Attributes:
        status: the HTTP status.
        allow: the header of this name.
    """

    def __init__(self, error: web.HTTPException, message: str = "") -> None:
        """Without a message it says what aiohttp says."""
        super().__init__(message or error.text or error.reason)
        self.status = error.status
        self.allow = error.headers.get("Allow")


def http_status(error: ServiceError) -> int:
    """Returns the HTTP status of an error."""
    if isinstance(error, HTTPRefusalError):
        return error.status
    return HTTP_STATUS.get(error.code, DEFAULT_STATUS)


def reason_status(reason: str | None) -> int:
    """Returns the HTTP status of an error's reason; 0 for none, and for one that is not ours."""
    error = BY_REASON.get(reason or "")
    return HTTP_STATUS.get(error.code, DEFAULT_STATUS) if error else 0


def error_body(error: ServiceError) -> dict[str, Any]:
    """Returns OpenAI's body of an error."""
    status = http_status(error)
    kind = TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    param = "model" if isinstance(error, NotFoundError) else error.field or None
    members = {"message": error.message, "type": kind, "param": param, "code": _code(error)}
    return {"error": members}


def _code(error: ServiceError) -> str:
    if isinstance(error, HTTPRefusalError):
        return HTTP_CODES.get(error.status, "invalid_request")
    if isinstance(error, OverloadedError):
        return "rate_limit_exceeded"
    return CODES.get(error.reason, error.reason.lower())


def error_response(error: ServiceError, body: dict[str, Any] | None = None) -> web.Response:
    """Returns the whole answer of an error, Retry-After included where trying again makes sense.

    Args:
        error: what has happened.
        body: the JSON of it; None for OpenAI's.
    """
    headers = _retry_headers(error)
    if isinstance(error, HTTPRefusalError) and error.allow:
        headers["Allow"] = error.allow
    status = http_status(error)
    if status == 401:
        headers[hdrs.WWW_AUTHENTICATE] = CHALLENGE
    return web.json_response(body or error_body(error), status=status, headers=headers)


def _retry_headers(error: ServiceError) -> dict[str, str]:
    seconds = error.retry_after
    if isinstance(error, CallerLimitError):
        # The SDKs of OpenAI and Anthropic come again, by milliseconds, unless they are told not to.
        if seconds is None:
            return {"x-should-retry": "false"}
        return {**_retry_after(seconds), "retry-after-ms": str(math.ceil(1000 * seconds))}
    if seconds is None and isinstance(error, OverloadedError):
        seconds = OVERLOAD_RETRY_SECONDS
    return {} if seconds is None else _retry_after(seconds)


def _retry_after(seconds: float) -> dict[str, str]:
    return {"Retry-After": str(max(1, math.ceil(seconds)))}
