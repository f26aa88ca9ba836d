"""How many gateways there are, where each gives a share of every caller's limits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog

from gateway.access.accounts import Accounts
from gateway.services.replicas import LOOKUP_SECONDS, ReplicaCount, open_replica_count
from gateway.tasks import owning

logger = structlog.get_logger()


@asynccontextmanager
async def shared_out(accounts: Accounts, gateway_count: str) -> AsyncIterator[None]:
    """Shares the limits out, for as long as the block runs.

    Args:
        accounts: whose limits.
        gateway_count: how many gateways, in digits; or the name, as gRPC writes it, that has the
            addresses of all. Where it cannot be looked up, what was found last holds, at first 1.
    """
    if gateway_count.isdecimal():
        accounts.gateway_count = int(gateway_count)
        yield
        return
    async with open_replica_count(gateway_count) as gateways:
        await _look_up(accounts, gateways)
        async with owning(asyncio.create_task(_follow(accounts, gateways))):
            yield


async def _follow(accounts: Accounts, gateways: ReplicaCount) -> None:
    while True:
        await asyncio.sleep(LOOKUP_SECONDS)
        await _look_up(accounts, gateways)


async def _look_up(accounts: Accounts, gateways: ReplicaCount) -> None:
    count = await gateways.now()
    if count is None:
        logger.warning("gateways_not_counted", gateway_count=accounts.gateway_count)
    elif count != accounts.gateway_count:
        logger.info("gateways_counted", gateway_count=count)
        accounts.gateway_count = count
