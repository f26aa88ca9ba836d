"""The lines that calls and requests leave in the log."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import Any

import pytest

PATIENCE_SECONDS = 10.0
POLL_SECONDS = 0.01


async def request_line(events: Iterable[Mapping[str, Any]], route: str) -> Mapping[str, Any]:
    """Waits for the one line of this route: who calls may know the end before it is logged."""
    for _ in range(round(PATIENCE_SECONDS / POLL_SECONDS)):
        if found := request_lines(events, route):
            (line,) = found
            return line
        await asyncio.sleep(POLL_SECONDS)
    pytest.fail(f"{route} has no line")


def request_lines(events: Iterable[Mapping[str, Any]], route: str) -> list[Mapping[str, Any]]:
    """Returns the lines of this route so far."""
    return [one for one in events if one["event"] == "request" and one["route"] == route]


def gateway_lines(events: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Returns the gateway's lines, and not those of services in the same process."""
    routes = ("/", "none")
    return [one for one in events if one["event"] == "request" and one["route"].startswith(routes)]
