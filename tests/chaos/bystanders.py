"""Honest clients beside an attack: how long they wait, and how much memory it takes meanwhile."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from dataclasses import dataclass, field

import aiohttp

from tests.chaos.clients import Clients, Plan, Source, about_a_picture, questions
from tests.chaos.ledger import Ending
from tests.chaos.stack import ChaosStack

POLL_SECONDS = 0.05
SOURCES: tuple[Source, Source] = ("data", "url")


@dataclass
class Waits:
    """What bystanders have seen.

    Attributes:
        answer_seconds: of whole and right answers, refused attempts before them included.
        live_seconds: of answers of /health/live.
        byte_count: the most memory of the three services together.
    """

    answer_seconds: list[float] = field(default_factory=list)
    live_seconds: list[float] = field(default_factory=list)
    byte_count: int = 0


class Bystanders:
    """Asks about nothing, about a known picture and about new ones, over and over."""

    def __init__(self, stack: ChaosStack, clients: Clients, http: aiohttp.ClientSession) -> None:
        self._stack = stack
        self._clients = clients
        self._http = http
        self._numbers = itertools.count()

    async def watch(self, attack: asyncio.Future[str] | None = None) -> Waits:
        """Returns what they see in rounds of questions, until an attack is over; one at least."""
        waits = Waits()
        probes = [asyncio.create_task(one) for one in (self._live(waits), self._memory(waits))]
        try:
            while True:
                for plan in self._plans():
                    waits.answer_seconds.append(await self._seconds(plan))
                if attack is None or attack.done():
                    return waits
        finally:
            for probe in probes:
                probe.cancel()

    def _plans(self) -> list[Plan]:
        number = next(self._numbers)
        draw = random.Random(number)
        text = draw.choice([one for one in questions() if not one.pictures])
        pictures = [
            Plan(next(self._numbers), about_a_picture(draw), source=source, is_fresh=True)
            for source in SOURCES
        ]
        return [Plan(number, text), *pictures]

    async def _seconds(self, plan: Plan) -> float:
        """Returns how long an answer took; one that was refused is asked for again."""
        start = time.monotonic()
        while await self._clients.ask(plan) is not Ending.WHOLE:
            await asyncio.sleep(POLL_SECONDS)
            plan = Plan(next(self._numbers), plan.conversation, source=plan.source, is_fresh=True)
        return time.monotonic() - start

    async def _live(self, waits: Waits) -> None:
        while True:
            start = time.monotonic()
            async with self._http.get("/health/live") as response:
                assert response.status == 200
            waits.live_seconds.append(time.monotonic() - start)
            await asyncio.sleep(POLL_SECONDS)

    async def _memory(self, waits: Waits) -> None:
        while True:
            held = await asyncio.to_thread(self._stack.footprints)
            total = sum(one.byte_count for one in held.values())
            waits.byte_count = max(waits.byte_count, total)
            await asyncio.sleep(POLL_SECONDS)
