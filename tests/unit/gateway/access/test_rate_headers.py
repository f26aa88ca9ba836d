"""The headers of a limited caller's answers, in both dialects."""

from __future__ import annotations

from datetime import datetime, timezone

import pytest

from gateway.anthropic.rate_headers import rate_headers as anthropic_headers
from gateway.caller_limits import Rate
from gateway.openai.rate_headers import duration, rate_headers


@pytest.mark.parametrize(
    ("seconds", "written"),
    [
        (0, "0s"),
        (0.0001, "1ms"),
        (0.12, "120ms"),
        (1, "1s"),
        (8.64, "8.64s"),
        (59.9999, "1m0s"),
        (360, "6m0s"),
        (7383.25, "123m3.25s"),
    ],
)
def test_a_duration_is_written_as_openai_does(seconds: float, written: str) -> None:
    assert duration(seconds) == written


def test_the_headers_are_openais() -> None:
    assert rate_headers([Rate("requests", 60, 59, 1.0), Rate("images", 5, 0, 90)]) == {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "59",
        "x-ratelimit-reset-requests": "1s",
        "x-ratelimit-limit-images": "5",
        "x-ratelimit-remaining-images": "0",
        "x-ratelimit-reset-images": "1m30s",
    }


def test_the_headers_are_anthropics() -> None:
    before = datetime.now(timezone.utc)
    headers = anthropic_headers([Rate("tokens", 60, 59, 100)])
    reset = datetime.fromisoformat(headers.pop("anthropic-ratelimit-tokens-reset"))
    assert headers == {
        "anthropic-ratelimit-tokens-limit": "60",
        "anthropic-ratelimit-tokens-remaining": "59",
    }
    assert 99 <= (reset - before).total_seconds() <= 130
