"""What a caller is told of its own limits: how far it is from them, and that it has reached one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from protos.errors import OverloadedError

Kind = Literal["requests", "tokens", "images"]


@dataclass(frozen=True)
class Rate:
    """How far a caller is from one of its limits.

    Attributes:
        kind: what is counted.
        limit: units a minute.
        remaining: units that it may use at once.
        reset_seconds: time until it may use all of the limit at once.
    """

    kind: Kind
    limit: int
    remaining: int
    reset_seconds: float


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
