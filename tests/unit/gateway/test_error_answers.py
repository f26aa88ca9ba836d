"""Every error of the vocabulary has an HTTP status and OpenAI's body."""

from __future__ import annotations

import json

import pytest
from aiohttp import web

from gateway.access.authentication import InvalidKeyError
from gateway.openai.errors import HTTPRefusalError, error_body, error_response, http_status
from protos.errors import (
    BY_REASON,
    ContextLengthError,
    InvalidImageError,
    NotFoundError,
    OverloadedError,
    ServiceError,
    UnavailableError,
)

STATUSES = {
    "INTERNAL": 500,
    "NON_FINITE": 500,
    "INVALID_FIELD": 400,
    "UNSUPPORTED_FIELD": 400,
    "INVALID_IMAGE": 400,
    "IMAGE_TOO_LARGE": 400,
    "IMAGE_FETCH_FAILED": 400,
    "PLACEHOLDER_MISMATCH": 400,
    "INVALID_TENSOR": 400,
    "CONTEXT_LENGTH_EXCEEDED": 400,
    "MODEL_MISMATCH": 503,
    "UNAUTHENTICATED": 401,
    "ACCESS_DENIED": 403,
    "NOT_FOUND": 404,
    "QUEUE_FULL": 429,
    "CHECKSUM_MISMATCH": 500,
    "SERVICE_UNAVAILABLE": 503,
    "ENGINE_DEAD": 503,
    "DEADLINE_EXCEEDED": 504,
}


def test_the_table_is_total() -> None:
    assert {reason: http_status(cls("")) for reason, cls in BY_REASON.items()} == STATUSES


@pytest.mark.parametrize(
    ("error", "kind", "param", "code"),
    [
        (InvalidImageError("x", field="a.b"), "invalid_request_error", "a.b", "invalid_image"),
        (ContextLengthError("x"), "invalid_request_error", None, "context_length_exceeded"),
        (NotFoundError("x"), "invalid_request_error", "model", "model_not_found"),
        (OverloadedError("x"), "rate_limit_error", None, "rate_limit_exceeded"),
        (UnavailableError("x"), "server_error", None, "service_unavailable"),
        (InvalidKeyError("unknown"), "invalid_request_error", None, "invalid_api_key"),
        (ServiceError("x"), "server_error", None, "server_error"),
    ],
)
def test_the_body_is_openais(error: ServiceError, kind: str, param: str | None, code: str) -> None:
    assert error_body(error) == {
        "error": {"message": error.message, "type": kind, "param": param, "code": code}
    }


@pytest.mark.parametrize(
    ("error", "seconds"),
    [
        (OverloadedError(""), "1"),
        (OverloadedError("", retry_after=2.2), "3"),
        (UnavailableError("", retry_after=0.1), "1"),
        (UnavailableError(""), None),
    ],
)
def test_retry_after_is_whole_seconds(error: ServiceError, seconds: str | None) -> None:
    assert error_response(error).headers.get("Retry-After") == seconds


def test_a_wrong_method_says_which_are_allowed() -> None:
    response = error_response(HTTPRefusalError(web.HTTPMethodNotAllowed("GET", ["POST"])))
    assert (response.status, response.headers["Allow"]) == (405, "POST")
    assert json.loads(response.text or "")["error"]["code"] == "method_not_allowed"
