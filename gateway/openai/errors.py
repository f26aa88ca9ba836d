"""How an error looks to an OpenAI client: HTTP status, headers and body."""

from __future__ import annotations

import math
from typing import Any

from aiohttp import web

from protos.errors import Code, NotFoundError, OverloadedError, ServiceError

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
    "QUEUE_FULL": "rate_limit_exceeded",
}
TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
HTTP_CODES = {
    404: "path_not_found",
    405: "method_not_allowed",
    408: "request_timeout",
    413: "request_too_large",
}
OVERLOAD_RETRY_SECONDS = 1.0


def http_status(error: ServiceError) -> int:
    """Returns the HTTP status of an error."""
    return HTTP_STATUS.get(error.code, DEFAULT_STATUS)


def error_body(error: ServiceError) -> dict[str, Any]:
    """Returns OpenAI's body of an error."""
    param = "model" if isinstance(error, NotFoundError) else error.field or None
    code = CODES.get(error.reason, error.reason.lower())
    return _body(http_status(error), error.message, param, code)


def error_response(error: ServiceError) -> web.Response:
    """Returns the whole answer of an error, Retry-After included where trying again makes sense."""
    seconds = error.retry_after
    if seconds is None and isinstance(error, OverloadedError):
        seconds = OVERLOAD_RETRY_SECONDS
    headers = {} if seconds is None else {"Retry-After": str(max(1, math.ceil(seconds)))}
    return web.json_response(error_body(error), status=http_status(error), headers=headers)


def http_error_response(error: web.HTTPException, message: str = "") -> web.Response:
    """Returns the answer to what aiohttp itself refuses: path, method, size of the body."""
    code = HTTP_CODES.get(error.status, "invalid_request")
    body = _body(error.status, message or error.text or error.reason, None, code)
    headers = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else {}
    return web.json_response(body, status=error.status, headers=headers)


def _body(status: int, message: str, param: str | None, code: str) -> dict[str, Any]:
    kind = TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}
