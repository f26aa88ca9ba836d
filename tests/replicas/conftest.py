"""Four scripted LLM services, two vision services and two gateways as processes, for all tests."""

from __future__ import annotations

import asyncio
import time
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
from tests.replicas.talks import Callers, Load, callers_of

PATIENCE_SECONDS = 20.0
POLL_SECONDS = 0.05
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
async def callers(shared_fleet: Fleet) -> AsyncIterator[Callers]:
    """Clients of both gateways."""
    async with callers_of(shared_fleet.urls) as callers:
        yield callers


@pytest_asyncio.fixture(loop_scope="session")
async def fleet(shared_fleet: Fleet, callers: Callers) -> Fleet:
    """The replicas, all of them up and known to the gateways."""
    await shared_fleet.restore()
    known = {replica: len(replica.events("began")) for replica in shared_fleet.services}
    deadline = time.monotonic() + PATIENCE_SECONDS
    async with Load(callers, "all").running(4):
        while any(len(one.events("began")) == count for one, count in known.items()):
            assert time.monotonic() < deadline, "a replica gets no calls"
            await asyncio.sleep(POLL_SECONDS)
    return shared_fleet
