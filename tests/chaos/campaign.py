"""A run: many requests, a schedule of faults, and at the end everything as it was."""

from __future__ import annotations

import asyncio
import itertools
import math
import random
import statistics
import sys
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Any

from tests.chaos.aftermath import AftermathError, settle
from tests.chaos.clients import Clients, PictureServer, Plan, about_a_picture, drawn_plan, questions
from tests.chaos.ledger import Ending, Ledger
from tests.chaos.schedule import Arena, Fault, Scheduled, drawn_disturbances, until
from tests.chaos.stack import (
    MAX_HELD_BYTE_COUNT,
    REPLICA_COUNT,
    ChaosStack,
    Footprint,
    Member,
    running_stack,
)
from tests.e2e.questions import Conversation

# In calm as under faults: a process that has been busy once keeps its pools' threads, and so must
# the one that it is compared with.
CONCURRENCY = 12
PROGRESS_COUNT = 100
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.2, 3.0
RECOVERY_SECONDS = 60.0
POLL_SECONDS = 0.05
# Pauses between the faults of a soak: a share of its time each.
SOAK_SAMPLE_COUNT = 500
# Where the numbers begin of requests that are not of a run's plan: those in calm, and witnesses.
FIRST_EXTRA_NUMBER = 1_000_000


@dataclass
class Report:
    """What a run has shown.

    Attributes:
        proofs: of the faults, by kind.
        recovery_seconds: from each fault's end to the first whole answer, by kind.
        before, after: what the services held in calm.
        byte_counts: memory of each in the course of a soak.
    """

    ledger: Ledger
    seconds: float = 0.0
    proofs: list[tuple[str, str]] = field(default_factory=list)
    recovery_seconds: dict[str, float] = field(default_factory=dict)
    manner_counts: Counter[str] = field(default_factory=Counter)
    before: dict[Member, Footprint] = field(default_factory=dict)
    after: dict[Member, Footprint] = field(default_factory=dict)
    byte_counts: dict[Member, list[int]] = field(default_factory=lambda: defaultdict(list))

    def share(self, ending: Ending) -> float:
        """Returns the share of the requests that ended so."""
        return self.ledger.counts()[ending] / len(self.ledger.endings)

    def growth(self, member: Member) -> float:
        """Returns by how much a process's memory grew in a soak after its warm-up, as a share.

        That is from the second fifth of the time to the last; the median of each counts.
        """
        byte_counts = self.byte_counts[member]
        fifth = len(byte_counts) // 5
        early, late = byte_counts[fifth : 2 * fifth], byte_counts[-fifth:]
        return statistics.median(late) / statistics.median(early) - 1


class Campaign:
    """Asks while faults strike; all that is drawn comes from the ledger's seed."""

    def __init__(
        self, stack: ChaosStack, clients: Clients, ledger: Ledger, progress: Callable[[str], None]
    ) -> None:
        self._stack = stack
        self._clients = clients
        self._ledger = ledger
        self._progress = progress
        self._extra = itertools.count(FIRST_EXTRA_NUMBER)
        self._request_count = 0
        self._sent_count = 0
        self._released_count = 0
        self.report = Report(ledger)

    async def run(self, request_count: int, schedule: list[Scheduled]) -> Report:
        """Sends so many requests while the faults of the schedule strike.

        Raises:
            UnprovenFaultError: a fault did not happen.
            ViolationError: a request did not end as it must.
            AftermathError: something is not as it was before.
        """
        self._request_count = request_count
        return await self._between_calms(
            iter(range(request_count)), partial(self._strike, schedule)
        )

    async def soak(self, seconds: float) -> Report:
        """Sends requests for so long, while faults strike that leave the processes alive.

        Raises:
            UnprovenFaultError, ViolationError, AftermathError: as `run` does.
        """
        deadline = time.monotonic() + seconds
        self._released_count = sys.maxsize
        numbers = takewhile(lambda _: time.monotonic() < deadline, itertools.count())
        disturb = partial(self._disturb, deadline, seconds / SOAK_SAMPLE_COUNT)
        return await self._between_calms(numbers, disturb)

    async def _between_calms(
        self, numbers: Iterator[int], strike: Callable[[], Coroutine[Any, Any, None]]
    ) -> Report:
        start = time.monotonic()
        await self._ask_in_calm()
        self._progress("answered in calm")
        self.report.before = self._stack.footprints()
        sending = asyncio.gather(
            strike(), *(self._ask_in_turn(numbers) for _ in range(CONCURRENCY))
        )
        try:
            await sending
        finally:
            sending.cancel()
        self._progress("all requests have ended")
        await self._ask_in_calm()
        self._progress("answered in calm")
        self.report.after = await settle(self._stack, self.report.before)
        self._progress("all is as before")
        self._ledger.check_failures()
        self._ledger.check()
        self.report.manner_counts = self._clients.manner_counts
        self.report.seconds = time.monotonic() - start
        return self.report

    async def _ask_in_turn(self, numbers: Iterator[int]) -> None:
        """Asks one request after the other; as an honest client, slower after each failure."""
        pause = FIRST_PAUSE_SECONDS
        for number in numbers:
            await until(partial(self._is_released, number), math.inf)
            self._sent_count += 1
            if self._sent_count % PROGRESS_COUNT == 0:
                self._progress(f"{self._sent_count} requests")
            ending = await self._clients.ask(drawn_plan(self._ledger.seed, number))
            if ending in (Ending.WHOLE, Ending.LEFT):
                pause = FIRST_PAUSE_SECONDS
            else:
                await asyncio.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE_SECONDS)

    async def _strike(self, schedule: list[Scheduled]) -> None:
        """Lets one fault after the other happen, each when its request has been sent."""
        self._released_count = schedule[0].number
        for (number, fault), following in zip(schedule, [*schedule[1:], None], strict=True):
            await until(partial(self._has_sent, number), math.inf)
            # What comes before the next fault is sent during this one, and after it.
            self._released_count = following.number if following else self._request_count
            await self._strike_once(fault)

    async def _strike_once(self, fault: Fault) -> None:
        arena = Arena(self._stack, self._ledger, self._witness)
        proof = await fault.strike(arena)
        self.report.proofs.append((fault.kind, proof))
        seconds = await self._recover(fault.kind)
        self._progress(f"{fault.kind}: {proof}; answers again after {seconds:.1f} s")

    async def _disturb(self, deadline: float, pause: float) -> None:
        """Lets faults happen that end no process, and looks at the memory after each."""
        for fault in drawn_disturbances(self._ledger.seed):
            if time.monotonic() > deadline:
                return
            await self._strike_once(fault)
            await asyncio.sleep(pause)
            for member, held in self._stack.footprints().items():
                self.report.byte_counts[member].append(held.byte_count)

    def _has_sent(self, count: int) -> bool:
        return self._sent_count >= count

    def _is_released(self, number: int) -> bool:
        return number < self._released_count

    async def _recover(self, kind: str) -> float:
        """Returns how long it took until a question was answered."""
        start = time.monotonic()
        while await self._witness(False) is not Ending.WHOLE:
            if time.monotonic() - start > RECOVERY_SECONDS:
                raise AftermathError(f"no answer for {RECOVERY_SECONDS:g} s after: {kind}")
            await asyncio.sleep(POLL_SECONDS)
        seconds = time.monotonic() - start
        self.report.recovery_seconds[kind] = max(
            seconds, self.report.recovery_seconds.get(kind, 0.0)
        )
        return seconds

    async def _witness(
        self, is_fresh: bool, padding_byte_count: int = 0, gateway: str = ""
    ) -> Ending | None:
        number = next(self._extra)
        asked = about_a_picture(random.Random(f"{self._ledger.seed}/{number}"))
        plan = Plan(number, asked, is_fresh=is_fresh, padding_byte_count=padding_byte_count)
        return await self._clients.ask(plan, gateway)

    async def _ask_in_calm(self) -> None:
        """Asks a question about each picture, and one about a file that takes a gateway's memory.

        Nothing is wrong, so all are answered; the last if no request holds a byte any more.
        """
        places = asyncio.Semaphore(CONCURRENCY)

        async def ask(asked: Conversation) -> Ending | None:
            async with places:
                return await self._clients.ask(Plan(next(self._extra), asked))

        asked = {one.pictures: one for one in questions()}
        endings = await asyncio.gather(*map(ask, asked.values()))
        for url in self._stack.urls:
            endings.append(await self._witness(True, MAX_HELD_BYTE_COUNT, url))
        if set(endings) != {Ending.WHOLE}:
            self._ledger.check_failures()
            self._ledger.check()
            raise AftermathError(f"in calm, requests ended with {Counter(endings)}")


@asynccontextmanager
async def running_campaign(
    folder: Path, seed: int, progress: Callable[[str], None]
) -> AsyncIterator[Campaign]:
    """Runs two of each process, and yields a campaign against them.

    Args:
        folder: gets the services' logs.
        seed: of everything that is drawn.
        progress: gets a line now and then.
    """
    ledger = Ledger(seed, REPLICA_COUNT)
    async with (
        running_stack(folder, seed, replica_count=REPLICA_COUNT) as stack,
        PictureServer().running() as pictures,
        Clients(stack.urls, ledger, pictures).ready() as clients,
    ):
        yield Campaign(stack, clients, ledger, progress)
