"""Seeded schedules of faults; each fault proves that it has happened, or the run has failed."""

from __future__ import annotations

import asyncio
import random
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import psutil

from tests.chaos import proxy
from tests.chaos.ledger import Ending, Ledger, Outage, Trouble
from tests.chaos.proxy import DIRECTIONS, Direction, Toxic
from tests.chaos.stack import (
    DRAIN_SECONDS,
    LINK_NAMES,
    MAX_REQUEST_COUNT,
    REPLICA_COUNT,
    REQUEST_SECONDS,
    SERVICE_NAMES,
    ChaosStack,
    LinkName,
    Member,
    ServiceName,
)

# By then a gateway has noticed that a service hangs.
HANG_SECONDS = 11.0
WITNESS_COUNT = 2
POLL_SECONDS = 0.02
STRIKE_SECONDS = 30.0
WITNESS_SECONDS = 1.0
KNOWN_SECONDS = 120.0
# Faults begin in this part of a run, so that requests come before and after each.
FIRST_SHARE, LAST_SHARE = 0.03, 0.9


async def until(condition: Callable[[], bool], seconds: float) -> None:
    """Returns when a condition holds, or after so long."""
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:  # noqa: ASYNC110 - nobody would set it
        await asyncio.sleep(POLL_SECONDS)


class UnprovenFaultError(AssertionError):
    """A fault did not happen, so the run that it was part of has shown nothing."""


class Witness(Protocol):
    """Sends one more request, and waits for its end."""

    def __call__(
        self, is_fresh: bool, padding_byte_count: int = 0, gateway: str = ""
    ) -> Coroutine[Any, Any, Ending | None]:
        """Asks about a picture that nobody has seen, or (False) that may be known."""


@dataclass(frozen=True)
class Arena:
    """Where faults strike."""

    stack: ChaosStack
    ledger: Ledger
    witness: Witness

    @contextmanager
    def trouble(self, kind: str, **about: Any) -> Iterator[Trouble]:
        """Writes into the ledger that for the time of the block requests may fail."""
        trouble = Trouble(kind, **about)
        self.ledger.troubles.append(trouble)
        try:
            yield trouble
        finally:
            trouble.end = time.monotonic()


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

    What was in flight in a service may fail; nothing else, as there is another one.

    Attributes:
        seconds: until the new one is started.
    """

    member: Member
    by_kill: bool
    seconds: float = 0.0

    @property
    def kind(self) -> str:
        return f"{'kill -9' if self.by_kill else 'SIGTERM'} {self.member.service}"

    async def strike(self, arena: Arena) -> str:
        if self.member.service == "gateway":
            return await self._end_gateway(arena)
        with arena.trouble(self.kind, request_ids=set()) as trouble:
            proof = await self._end(arena.stack)
            trouble.request_ids = arena.stack.in_flight(self.member)
        await self._replace(arena)
        return proof

    async def _end_gateway(self, arena: Arena) -> str:
        """Ends a gateway, which refuses what comes while it drains."""
        url = arena.stack.url(self.member)
        outage = Outage(self.by_kill, url)
        arena.ledger.outages.append(outage)
        with arena.trouble(self.kind, gateway=url):
            proof = await self._end(arena.stack)
        await self._replace(arena)
        outage.end = time.monotonic()
        return proof

    async def _end(self, stack: ChaosStack) -> str:
        service = stack.services[self.member]
        pid = service.pid
        if self.by_kill:
            await stack.kill(self.member)
        else:
            await stack.terminate(self.member)
        expected = -signal.SIGKILL if self.by_kill else 0
        proof = f"process {pid} of {self.member}: exit status {service.returncode}"
        return self.check(proof, not psutil.pid_exists(pid) and service.returncode == expected)

    async def _replace(self, arena: Arena) -> None:
        """Starts a new one, and waits until it is known: only then may another one go.

        That is what `minReadySeconds` of a Deployment is for. A gateway connects to a replica when
        a key leads to it, so it is asked until then.
        """
        stack = arena.stack
        await asyncio.sleep(self.seconds)
        await stack.start(self.member)
        deadline = time.monotonic() + KNOWN_SECONDS
        while self.member in stack.links and not stack.is_known(self.member):
            self.check(f"{self.member} is not found again", time.monotonic() < deadline)
            await asyncio.gather(*(arena.witness(True, gateway=url) for url in stack.urls))


@dataclass(frozen=True)
class Pause(Fault):
    """SIGSTOP, and some time later SIGCONT.

    What was in flight in a service may fail when that is long; nothing else, as there is another.
    """

    member: Member
    seconds: float

    @property
    def kind(self) -> str:
        past = ""
        if self.seconds > HANG_SECONDS:
            past = " past the deadline" if self.seconds > REQUEST_SECONDS else " for long"
        return f"SIGSTOP {self.member.service}{past}"

    async def strike(self, arena: Arena) -> str:
        witnesses = [asyncio.create_task(arena.witness(False)) for _ in range(WITNESS_COUNT)]
        with arena.trouble(self.kind, request_ids=set()) as trouble:
            arena.stack.signal(self.member, signal.SIGSTOP)
            try:
                if self.member in arena.stack.links:
                    trouble.request_ids = arena.stack.in_flight(self.member)
                await asyncio.sleep(self.seconds)
                status = arena.stack.status(self.member)
            finally:
                arena.stack.signal(self.member, signal.SIGCONT)
        await asyncio.gather(*witnesses)
        return self.check(f"{self.member}: status {status!r}", status == psutil.STATUS_STOPPED)


@dataclass(frozen=True)
class Poison(Fault):
    """A toxic on the way between the gateways and a service.

    Attributes:
        seconds: how long it stays after its first strike.
        during: what happens meanwhile, for a toxic that would not strike otherwise.
    """

    toxic: Toxic
    member: Member
    direction: Direction
    seconds: float
    during: Fault | None = None

    @property
    def kind(self) -> str:
        return f"{self.toxic.kind} {self.member.service}"

    async def strike(self, arena: Arena) -> str:
        link = arena.stack.links[self.member]
        with arena.trouble(self.kind):
            async with link.poisoned(self.toxic, self.direction):
                witnesses = await self._witnessed(arena)
                if self.during is not None:
                    await self.during.strike(arena)
                await asyncio.sleep(self.seconds)
            await asyncio.gather(*witnesses)
        return self.check(f"struck {self.toxic.strike_count} times", self.toxic.strike_count)

    async def _witnessed(self, arena: Arena) -> list[asyncio.Task[Ending | None]]:
        """Sends requests until the toxic has struck, as half of them go another way."""
        witnesses = []
        deadline = time.monotonic() + STRIKE_SECONDS
        while not self.toxic.strike_count and time.monotonic() < deadline:
            witnesses += [asyncio.create_task(arena.witness(True)) for _ in range(WITNESS_COUNT)]
            if self.during is not None:
                break
            await until(lambda: self.toxic.strike_count > 0, WITNESS_SECONDS)
        return witnesses


@dataclass(frozen=True)
class Flood(Fault):
    """Twice as many requests at once as a gateway takes."""

    @property
    def kind(self) -> str:
        return "full queue"

    async def strike(self, arena: Arena) -> str:
        before = arena.ledger.statuses[429]
        url = arena.stack.url(Member("gateway"))
        with arena.trouble(self.kind):
            flood = (arena.witness(False, gateway=url) for _ in range(2 * MAX_REQUEST_COUNT))
            await asyncio.gather(*flood)
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
        faults += [Pause(_member(draw, name), draw.uniform(0.3, 3.0)) for name in SERVICE_NAMES]
        faults += [poison for name in LINK_NAMES for poison in _poisons(draw, name)]
        draw.shuffle(faults)
        yield from faults


def _member(draw: random.Random, name: ServiceName) -> Member:
    return Member(name, draw.randrange(REPLICA_COUNT))


def _short_round(draw: random.Random) -> list[Fault]:
    links = [_poisons(draw, name) for name in LINK_NAMES]
    toxics = [draw.choice(pair) for pair in zip(*links, strict=True)]
    ends: list[Fault] = [End(_member(draw, name), by_kill=True) for name in SERVICE_NAMES]
    drained: tuple[ServiceName, ...] = (draw.choice(LINK_NAMES), "gateway")
    ends += [End(_member(draw, name), by_kill=False) for name in drained]
    pauses = [Pause(_member(draw, name), draw.uniform(0.3, 1.0)) for name in SERVICE_NAMES]
    hang = Pause(_member(draw, draw.choice(LINK_NAMES)), HANG_SECONDS + 1)
    return [*ends, *pauses, hang, *toxics, _corruption(draw), Flood()]


def _thorough_round(draw: random.Random) -> list[Fault]:
    past_deadline = Pause(_member(draw, "llm"), REQUEST_SECONDS + 2)
    faults: list[Fault] = [Flood(), _corruption(draw), past_deadline]
    faults += [Pause(_member(draw, name), HANG_SECONDS + 1) for name in LINK_NAMES]
    for name in SERVICE_NAMES:
        faults += [
            End(_member(draw, name), by_kill, draw.uniform(0.0, 2.0)) for by_kill in (True, False)
        ]
        faults.append(Pause(_member(draw, name), draw.uniform(0.3, 3.0)))
    member = _member(draw, "vision")
    slow_close = proxy.SlowClose(DRAIN_SECONDS / 5)
    faults.append(Poison(slow_close, member, "downstream", 0.0, End(member, by_kill=False)))
    return faults + [poison for name in LINK_NAMES for poison in _poisons(draw, name)]


def _poisons(draw: random.Random, name: LinkName) -> list[Fault]:
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
        Poison(toxic, _member(draw, name), draw.choice(DIRECTIONS), draw.uniform(0.1, 1.0))
        for toxic in toxics
    ]


def _corruption(draw: random.Random) -> Fault:
    """Returns a fault on the way of pictures and embeddings, whose digests tell it.

    Text has none before there is TLS: a changed bit of it would be an honest answer to another
    question.
    """
    toxic = proxy.Corrupt(draw.uniform(0.1, 0.5))
    member = _member(draw, "vision")
    return Poison(toxic, member, draw.choice(DIRECTIONS), draw.uniform(0.1, 1.0))
