"""How an error looks to a client of Anthropic's API."""

from __future__ import annotations

import re
from typing import Any

from gateway.openai.errors import http_status
from protos.errors import ServiceError, UnsupportedFieldError

TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}
# Of fields whose refusal the SDK knows by more than its sentence: it goes on without a thread.
DETAILS = {"thread": {"error_code": "thread_unsupported_request"}}
INDEX = re.compile(r"\[(\d+)\]")


def error_body(error: ServiceError, request_id: str) -> dict[str, Any]:
    """Returns Anthropic's body of an error; the field at fault stands before the sentence."""
    status = http_status(error)
    kind = TYPES.get(status, "api_error" if status >= 500 else "invalid_request_error")
    members: dict[str, Any] = {"type": kind, "message": _located(error)}
    if isinstance(error, UnsupportedFieldError) and error.field in DETAILS:
        members["details"] = DETAILS[error.field]
    return {"type": "error", "error": members, "request_id": request_id}


def _located(error: ServiceError) -> str:
    """Returns the sentence behind its field, whose indexes are written as `messages.0.content`."""
    path = INDEX.sub(r".\1", error.field)
    return f"{path}: {error.message}" if path else error.message
