"""Clients in an open loop: they ask whether or not those before them have been answered."""

from __future__ import annotations

import asyncio
import random
from itertools import accumulate

import aiohttp

from tests.benchmarks.crossover.clients import Answer, ask
from tests.benchmarks.crossover.workload import Workload


async def ask_at_random(
    url: str, workload: Workload, count: int, requests_per_second: float
) -> list[Answer]:
    """Asks so many requests, each an exponential pause after the one before; returns the answers
    in the order of asking."""
    chance = random.Random(workload.seed)
    pauses = [chance.expovariate(requests_per_second) for _ in range(count)]
    timeout = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0), timeout=timeout
    ) as http:

        async def ask_later(number: int, seconds: float) -> Answer:
            await asyncio.sleep(seconds)
            return await ask(http, url, workload.question(number).body)

        asked = (ask_later(*later) for later in enumerate(accumulate(pauses)))
        return await asyncio.gather(*asked)
