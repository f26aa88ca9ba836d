"""How OpenAI's headers tell a client how far it is from its limits."""

from __future__ import annotations

import math
from collections.abc import Sequence

from gateway.caller_limits import Rate


def rate_headers(rates: Sequence[Rate]) -> dict[str, str]:
    """Returns x-ratelimit-limit-requests and the like; those of images are ours."""
    headers = {}
    for rate in rates:
        headers[f"x-ratelimit-limit-{rate.kind}"] = str(rate.limit)
        headers[f"x-ratelimit-remaining-{rate.kind}"] = str(rate.remaining)
        headers[f"x-ratelimit-reset-{rate.kind}"] = duration(rate.reset_seconds)
    return headers


def duration(seconds: float) -> str:
    """Returns a time as OpenAI writes it, "120ms", "1.5s" or "6m0s"; parts of a ms count as one."""
    milliseconds = math.ceil(1000 * seconds)
    if milliseconds < 1000:
        return f"{milliseconds}ms" if milliseconds else "0s"
    minutes, rest = divmod(milliseconds, 60_000)
    return f"{minutes}m{rest / 1000:g}s" if minutes else f"{rest / 1000:g}s"
