"""What a caller is told that has used up what its key gives it."""

from __future__ import annotations

from protos.errors import OverloadedError


class CallerLimitError(OverloadedError):
    """A caller's own limit is reached; without `retry_after` it is less than one request takes."""


class CallerRequestsError(CallerLimitError):
    """Too many requests in a minute."""

    reason = "CALLER_REQUESTS"


class CallerTokensError(CallerLimitError):
    """Too many tokens in a minute."""

    reason = "CALLER_TOKENS"


class CallerImagesError(CallerLimitError):
    """Too many images in a minute."""

    reason = "CALLER_IMAGES"


class CallerConcurrencyError(CallerLimitError):
    """Too many requests at a time."""

    reason = "CALLER_CONCURRENCY"


CALLER_LIMIT_ERRORS = (
    CallerRequestsError,
    CallerTokensError,
    CallerImagesError,
    CallerConcurrencyError,
)
