"""Hundreds of requests under a schedule of faults: each has one ending, and all is as before.

The quick run is the same every time; the long ones draw a seed. `CHAOS_SEED=123` replays the
requests and faults of a run; a failure names its seed.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

import pytest
import structlog

from tests.chaos.campaign import Report, running_campaign
from tests.chaos.ledger import Ending
from tests.chaos.report import written
from tests.chaos.schedule import drawn_schedule

logger = structlog.get_logger()
SOAK_SECONDS = float(os.environ.get("CHAOS_SOAK_SECONDS") or 3600)
LARGEST_GROWTH = 0.01
QUICK_SEED = int(os.environ.get("CHAOS_SEED") or 2026)
SEED = int(os.environ.get("CHAOS_SEED") or secrets.randbelow(2**31))


async def run(folder: Path, seed: int, request_count: int, *, round_count: int) -> Report:
    schedule = drawn_schedule(seed, request_count, round_count=round_count)
    async with running_campaign(folder, seed, logger.info) as campaign:
        logger.info("chaos", CHAOS_SEED=seed)
        report = await campaign.run(request_count, schedule)
    logger.info(written(report))
    assert len(report.proofs) == len(schedule)
    assert len(report.ledger.endings) > request_count
    return report


@pytest.mark.slow
@pytest.mark.timeout(1200)
async def test_four_hundred_requests_under_faults(tmp_path: Path) -> None:
    report = await run(tmp_path, QUICK_SEED, 400, round_count=1)
    assert report.share(Ending.WHOLE) >= 0.5
    assert all(report.manner_counts[manner] for manner in ("patient", "slow reader", "leaves"))


@pytest.mark.slow
@pytest.mark.timeout(7200)
async def test_ten_thousand_requests_under_faults(tmp_path: Path) -> None:
    report = await run(tmp_path, SEED, 10_000, round_count=8)
    assert report.share(Ending.WHOLE) >= 0.5


@pytest.mark.slow
@pytest.mark.timeout(2 * SOAK_SECONDS + 600)
async def test_soak_without_growth(tmp_path: Path) -> None:
    async with running_campaign(tmp_path, SEED, logger.info) as campaign:
        report = await campaign.soak(SOAK_SECONDS)
    logger.info(written(report))
    assert report.share(Ending.WHOLE) >= 0.5
    for member in report.byte_counts:
        assert report.growth(member) < LARGEST_GROWTH, member
