"""How Anthropic's headers tell a client how far it is from its limits."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta, timezone

from gateway.caller_limits import Rate


def rate_headers(rates: Sequence[Rate]) -> dict[str, str]:
    """Returns anthropic-ratelimit-requests-limit and the like; those of images are ours."""
    now = datetime.now(timezone.utc)
    headers = {}
    for rate in rates:
        name = f"anthropic-ratelimit-{rate.kind}"
        reset = now + timedelta(seconds=rate.reset_seconds)
        headers[f"{name}-limit"] = str(rate.limit)
        headers[f"{name}-remaining"] = str(rate.remaining)
        headers[f"{name}-reset"] = reset.strftime("%Y-%m-%dT%H:%M:%SZ")
    return headers
