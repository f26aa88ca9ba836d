"""Four scripted LLM services, two vision services and two gateways as processes, for all tests."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.replicas.fleet import (
    Fleet,
    Kind,
    Program,
    has_loopback_addresses,
    running_fleet,
    scripted,
)
from tests.replicas.talks import Callers, callers_of

LLM_COUNT, VISION_COUNT, GATEWAY_COUNT = 4, 2, 2


@pytest.fixture(scope="session")
def addresses() -> None:
    """Skips where replicas cannot have addresses of their own."""
    if not has_loopback_addresses():
        pytest.skip("this machine has no loopback addresses beside 127.0.0.1")


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def shared_fleet(
    addresses: None, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Fleet]:
    programs: dict[Kind, list[Program]] = {
        "vision": [scripted("vision")] * VISION_COUNT,
        "llm": [scripted("llm")] * LLM_COUNT,
    }
    folder = tmp_path_factory.mktemp("fleet")
    async with running_fleet(folder, programs, gateway_count=GATEWAY_COUNT) as fleet:
        yield fleet


@pytest_asyncio.fixture(loop_scope="session")
async def fleet(shared_fleet: Fleet) -> Fleet:
    """The replicas, all of them up."""
    await shared_fleet.restore()
    return shared_fleet


@pytest_asyncio.fixture(loop_scope="session")
async def callers(fleet: Fleet) -> AsyncIterator[Callers]:
    """Clients of both gateways."""
    async with callers_of(fleet.urls) as callers:
        yield callers
