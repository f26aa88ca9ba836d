"""Which info lines are left out: those of the same requests everywhere, and never in silence."""

from __future__ import annotations

from typing import Any

import pytest
import structlog

from protos.process.log_sampling import SLOW_SECONDS, InfoSampler, fraction

IDS = [f"request-{number}" for number in range(20_000)]


class Clock:
    """A clock that a test sets."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def offer(sampler: InfoSampler, level: str, **event: Any) -> dict[str, Any] | None:
    """Returns the event as it is written; None if it is left out."""
    try:
        return dict(sampler(None, level, {"event": "request", **event}))
    except structlog.DropEvent:
        return None


def kept(sampler: InfoSampler, clock: Clock, ids: list[str], rate: int) -> list[dict[str, Any]]:
    """Returns the lines that are written of requests that come at a rate."""
    lines = []
    for request_id in ids:
        clock.now += 1 / rate
        lines.append(offer(sampler, "info", request_id=request_id))
    return [line for line in lines if line is not None]


def test_below_the_rate_all_is_written() -> None:
    clock = Clock()
    lines = kept(InfoSampler(100, clock), clock, IDS, rate=99)
    assert [line["request_id"] for line in lines] == IDS
    assert not any("left_out_count" in line for line in lines)


def test_above_it_about_so_many_are_written_and_the_others_counted() -> None:
    clock = Clock()
    sampler = InfoSampler(100, clock)
    lines = kept(sampler, clock, IDS, rate=2000)  # 10 seconds
    assert 800 < len(lines) < 1700  # the first second has more: nobody knows yet what comes
    last = offer(sampler, "warning")
    assert last
    left_out_count = sum(line.get("left_out_count", 0) for line in [*lines, last])
    assert left_out_count == len(IDS) - len(lines)
    assert "left_out_count" not in (offer(sampler, "warning") or {})


def test_processes_keep_the_same_requests() -> None:
    """Of two with as many lines each keeps the same; what a busier one keeps, the other does."""
    ids = [
        {str(line["request_id"]) for line in kept(InfoSampler(100, clock), clock, IDS, rate)}
        for rate in (2000, 2000, 8000)
        for clock in [Clock()]
    ]
    assert ids[0] == ids[1]
    late = set(IDS[16_000:])  # when both know their rates
    assert ids[2] & late
    assert ids[2] & late < ids[0] & late


@pytest.mark.parametrize(
    ("level", "event"),
    [
        ("warning", {"request_id": "a"}),
        ("error", {"request_id": "a"}),
        ("info", {"request_id": "a", "total_seconds": SLOW_SECONDS}),
        ("info", {}),
    ],
)
def test_what_matters_is_written_at_any_rate(level: str, event: dict[str, Any]) -> None:
    clock = Clock()
    sampler = InfoSampler(1e-6, clock)
    assert not kept(sampler, clock, IDS[:1000], rate=1000)
    assert all(offer(sampler, level, **event) for _ in range(1000))


def test_after_a_flood_all_is_written_again() -> None:
    clock = Clock()
    sampler = InfoSampler(100, clock)
    kept(sampler, clock, IDS, rate=5000)
    clock.now += 3
    assert len(kept(sampler, clock, IDS[:500], rate=50)) == 500


def test_a_client_that_chooses_its_ids_fills_no_disk() -> None:
    clock = Clock()
    sampler = InfoSampler(100, clock)
    chosen = [name for name in IDS if fraction(name) < 0.01] * 50
    assert len(chosen) > 5000
    lines = kept(sampler, clock, chosen, rate=5000)
    assert len(lines) <= 500 * (len(chosen) / 5000 + 1)
    last = offer(sampler, "warning")
    assert last
    left_out_count = sum(line.get("left_out_count", 0) for line in [*lines, last])
    assert left_out_count == len(chosen) - len(lines)
