"""Seeded schedules of faults; each fault proves that it has happened, or the run has failed."""

from __future__ import annotations

import asyncio
import random
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import psutil

from tests.chaos import proxy
from tests.chaos.ledger import Ending, Ledger, Outage
from tests.chaos.proxy import DIRECTIONS, Direction, Toxic
from tests.chaos.stack import (
    DRAIN_SECONDS,
    MAX_REQUEST_COUNT,
    REQUEST_SECONDS,
    SERVICE_NAMES,
    ChaosStack,
    LinkName,
    ServiceName,
)

LINK_NAMES: tuple[LinkName, LinkName] = ("vision", "llm")
WITNESS_COUNT = 2
POLL_SECONDS = 0.02
STRIKE_SECONDS = 30.0
# Faults begin in this part of a run, so that requests come before and after each.
FIRST_SHARE, LAST_SHARE = 0.03, 0.9


async def until(condition: Callable[[], bool], seconds: float) -> None:
    """Returns when a condition holds, or after so long."""
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:  # noqa: ASYNC110 - nobody would set it
        await asyncio.sleep(POLL_SECONDS)


class UnprovenFaultError(AssertionError):
    """A fault did not happen, so the run that it was part of has shown nothing."""


@dataclass(frozen=True)
class Arena:
    """Where faults strike.

    Attributes:
        witness: sends one more request, about a picture that nobody has seen or (False) that may be
            known, and waits for its end.
    """

    stack: ChaosStack
    ledger: Ledger
    witness: Callable[[bool], Coroutine[Any, Any, Ending | None]]


class Fault(ABC):
    """Something bad that ends again."""

    @property
    @abstractmethod
    def kind(self) -> str:
        """What it is called in reports."""

    @abstractmethod
    async def strike(self, arena: Arena) -> str:
        """Happens, and ends; returns the proof that it happened.

        Raises:
            UnprovenFaultError: it did not.
        """

    def check(self, proof: object, happened: object) -> str:
        """Returns the proof if it is one."""
        if not happened:
            raise UnprovenFaultError(f"{self.kind}: {proof}")
        return str(proof)


@dataclass(frozen=True)
class End(Fault):
    """A process ends by SIGKILL, or by SIGTERM; later a new one listens on its port.

    Attributes:
        seconds: until the new one is started.
    """

    service: ServiceName
    by_kill: bool
    seconds: float = 0.0

    @property
    def kind(self) -> str:
        return f"{'kill -9' if self.by_kill else 'SIGTERM'} {self.service}"

    async def strike(self, arena: Arena) -> str:
        outage = Outage(self.by_kill)
        if self.service == "gateway":
            arena.ledger.outages.append(outage)
        pid = arena.stack.services[self.service].pid
        status = await self._end(arena.stack)
        is_gone = not psutil.pid_exists(pid)
        await asyncio.sleep(self.seconds)
        await arena.stack.start(self.service)
        outage.end = time.monotonic()
        expected = -signal.SIGKILL if self.by_kill else 0
        return self.check(f"process {pid}: exit status {status}", is_gone and status == expected)

    async def _end(self, stack: ChaosStack) -> int | None:
        if not self.by_kill:
            return await stack.terminate(self.service)
        await stack.kill(self.service)
        return stack.services[self.service].returncode


@dataclass(frozen=True)
class Pause(Fault):
    """SIGSTOP, and some time later SIGCONT."""

    service: ServiceName
    seconds: float

    @property
    def kind(self) -> str:
        past = " past the deadline" if self.seconds > REQUEST_SECONDS else ""
        return f"SIGSTOP {self.service}{past}"

    async def strike(self, arena: Arena) -> str:
        witnesses = [asyncio.create_task(arena.witness(False)) for _ in range(WITNESS_COUNT)]
        arena.stack.signal(self.service, signal.SIGSTOP)
        try:
            await asyncio.sleep(self.seconds)
            status = arena.stack.status(self.service)
        finally:
            arena.stack.signal(self.service, signal.SIGCONT)
        await asyncio.gather(*witnesses)
        return self.check(f"status {status!r}", status == psutil.STATUS_STOPPED)


@dataclass(frozen=True)
class Poison(Fault):
    """A toxic on the way between the gateway and a service.

    Attributes:
        seconds: how long it stays after its first strike.
        during: what happens meanwhile, for a toxic that would not strike otherwise.
    """

    toxic: Toxic
    link: LinkName
    direction: Direction
    seconds: float
    during: Fault | None = None

    @property
    def kind(self) -> str:
        return f"{self.toxic.kind} {self.link}"

    async def strike(self, arena: Arena) -> str:
        async with arena.stack.links[self.link].poisoned(self.toxic, self.direction):
            witnesses = [asyncio.create_task(arena.witness(True)) for _ in range(WITNESS_COUNT)]
            if self.during is not None:
                await self.during.strike(arena)
            await until(lambda: self.toxic.strike_count > 0, STRIKE_SECONDS)
            await asyncio.sleep(self.seconds)
        await asyncio.gather(*witnesses)
        return self.check(f"struck {self.toxic.strike_count} times", self.toxic.strike_count)


@dataclass(frozen=True)
class Flood(Fault):
    """Twice as many requests at once as the gateway takes."""

    @property
    def kind(self) -> str:
        return "full queue"

    async def strike(self, arena: Arena) -> str:
        before = arena.ledger.statuses[429]
        await asyncio.gather(*(arena.witness(False) for _ in range(2 * MAX_REQUEST_COUNT)))
        refused_count = arena.ledger.statuses[429] - before
        return self.check(f"{refused_count} requests got 429", refused_count)


class Scheduled(NamedTuple):
    """A fault, and the number of the request with which it begins, at the earliest."""

    number: int
    fault: Fault


def drawn_schedule(seed: int, request_count: int, *, round_count: int) -> list[Scheduled]:
    """Returns the faults of a run: always the same for the same arguments.

    A run of one round has each kind of fault once, on a service or a link that is drawn; in one of
    several rounds each has every fault on every one.
    """
    draw = random.Random(seed)
    draw_round = _short_round if round_count == 1 else _thorough_round
    faults: list[Fault] = []
    for _ in range(round_count):
        drawn = draw_round(draw)
        draw.shuffle(drawn)
        faults += drawn
    step = (LAST_SHARE - FIRST_SHARE) * request_count / len(faults)
    first = FIRST_SHARE * request_count
    return [Scheduled(round(first + step * index), one) for index, one in enumerate(faults)]


def drawn_disturbances(seed: int) -> Iterator[Fault]:
    """Yields, without end, faults that leave all processes alive: the same for the same seed."""
    draw = random.Random(seed)
    while True:
        faults: list[Fault] = [Flood(), _corruption(draw)]
        faults += [Pause(name, draw.uniform(0.3, 3.0)) for name in SERVICE_NAMES]
        faults += [poison for link in LINK_NAMES for poison in _poisons(draw, link)]
        draw.shuffle(faults)
        yield from faults


def _short_round(draw: random.Random) -> list[Fault]:
    links = [_poisons(draw, link) for link in LINK_NAMES]
    toxics = [draw.choice(pair) for pair in zip(*links, strict=True)]
    ends: list[Fault] = [End(name, by_kill=True) for name in SERVICE_NAMES]
    ends.append(End(draw.choice(("vision", "gateway")), by_kill=False))
    pauses = [Pause(name, draw.uniform(0.3, 1.0)) for name in SERVICE_NAMES]
    return [*ends, *pauses, *toxics, _corruption(draw), Flood()]


def _thorough_round(draw: random.Random) -> list[Fault]:
    faults: list[Fault] = [Flood(), _corruption(draw), Pause("llm", REQUEST_SECONDS + 2)]
    for name in SERVICE_NAMES:
        faults += [End(name, by_kill, draw.uniform(0.0, 2.0)) for by_kill in (True, False)]
        faults.append(Pause(name, draw.uniform(0.3, 3.0)))
    slow_close = proxy.SlowClose(DRAIN_SECONDS / 5)
    faults.append(Poison(slow_close, "vision", "downstream", 0.0, End("vision", by_kill=False)))
    return faults + [poison for link in LINK_NAMES for poison in _poisons(draw, link)]


def _poisons(draw: random.Random, link: LinkName) -> list[Fault]:
    """Returns a fault of each toxic that every link can bear, in one order."""
    toxics = [
        proxy.Latency(draw.uniform(0.02, 0.2), jitter_seconds=draw.uniform(0.0, 0.1)),
        proxy.Bandwidth(draw.uniform(0.2e6, 2e6)),
        proxy.Slicer(draw.randint(10, 2000), 0.0005),
        proxy.Timeout(draw.uniform(0.1, 1.0)),
        proxy.ResetPeer(draw.uniform(0.0, 0.2)),
        proxy.LimitData(draw.randint(0, 200)),
        proxy.HalfClose(),
    ]
    return [
        Poison(toxic, link, draw.choice(DIRECTIONS), draw.uniform(0.1, 1.0)) for toxic in toxics
    ]


def _corruption(draw: random.Random) -> Fault:
    """Returns a fault on the way of pictures and embeddings, whose digests tell it.

    Text has none before there is TLS: a changed bit of it would be an honest answer to another
    question.
    """
    toxic = proxy.Corrupt(draw.uniform(0.1, 0.5))
    return Poison(toxic, "vision", draw.choice(DIRECTIONS), draw.uniform(0.1, 1.0))
