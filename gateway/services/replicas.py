"""How many addresses a service has now; gRPC itself does not tell."""

from __future__ import annotations

import asyncio
import re
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from urllib.parse import unquote

from aiodns import DNSResolver
from aiodns.error import DNSError

from gateway.tasks import owning

# Between two questions to a name server, however often somebody wants to know.
LOOKUP_SECONDS = 5.0
# For an answer, and before the question is put once more.
ANSWER_SECONDS = 1.5
TRY_SECONDS = 0.5
TRY_COUNT = 3
DNS_PORT = 53
# dns:NAME, dns:///NAME, dns://SERVER/NAME; without a scheme it is a name, too.
DNS_TARGET = re.compile(r"(?:dns:(?://(?P<server>[^/]*)/)?)?(?P<place>[^/]+)", re.IGNORECASE)
LISTED_TARGET = re.compile(r"ipv[46]:(?P<addresses>[^/]+)", re.IGNORECASE)
LONE_TARGET = re.compile(r"(?:unix|unix-abstract|vsock):.+", re.IGNORECASE)
# HOST, HOST:PORT, [ADDRESS]:PORT, and an address of IPv6 by itself.
PLACE = re.compile(r"\[([^\]]+)\](?::(\w+))?|([^:]+)(?::(\w+))?|(.+)")


@dataclass(frozen=True)
class Target:
    """A service's address as gRPC reads it.

    Attributes:
        known_count: how many addresses it has, where that stands in it.
        name: the name that has them otherwise; empty where nobody can tell.
        server: address and port of the name server that is asked; None for the machine's.
    """

    known_count: int | None = None
    name: str = ""
    server: tuple[str, int] | None = None

    @classmethod
    def parse(cls, target: str) -> Target:
        """Reads what an option holds."""
        target = unquote(target)
        if listed := LISTED_TARGET.fullmatch(target):
            return cls(known_count=len(listed["addresses"].split(",")))
        if LONE_TARGET.fullmatch(target):
            return cls(known_count=1)
        if named := DNS_TARGET.fullmatch(target):
            return cls._of_name(named["server"] or "", named["place"])
        return cls()

    @classmethod
    def _of_name(cls, server: str, place: str) -> Target:
        name, _ = _host_and_port(place)
        if _is_address(name):
            return cls(known_count=1)
        if not server:
            return cls(name=name)
        address, port = _host_and_port(server)
        # A name server that has to be looked up itself is nothing that gRPC would ask.
        return cls(name=name, server=(address, port)) if _is_address(address) else cls()


def _host_and_port(place: str) -> tuple[str, int]:
    parts = PLACE.fullmatch(place)
    assert parts  # the last form takes all
    bracketed, its_port, name, port, bare = parts.groups()
    number = its_port or port or ""
    return bracketed or name or bare, int(number) if number.isdecimal() else DNS_PORT


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


@asynccontextmanager
async def open_replica_count(target: str) -> AsyncIterator[ReplicaCount]:
    """Yields what counts the replicas of a service at this address, as gRPC writes it."""
    count = ReplicaCount(Target.parse(target))
    try:
        yield count
    finally:
        await count.close()


class ReplicaCount:
    """How many replicas a service has, by the addresses of its name; looked up now and then."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._resolver: DNSResolver | None = None
        self._answer: asyncio.Task[int | None] | None = None
        self._valid_until = 0.0

    async def now(self) -> int | None:
        """Returns it; None where nobody can tell."""
        if not self._target.name:
            return self._target.known_count
        if self._answer is None or (self._answer.done() and time.monotonic() >= self._valid_until):
            self._answer = asyncio.create_task(self._look_up())
        # Whoever no longer waits for it does not end it: else each that hangs up costs a question.
        return await asyncio.shield(self._answer)

    async def _look_up(self) -> int | None:
        try:
            return await self._ask()
        finally:
            self._valid_until = time.monotonic() + LOOKUP_SECONDS

    async def _ask(self) -> int | None:
        self._resolver = self._resolver or _resolver(self._target.server)
        try:
            asking = self._resolver.getaddrinfo(self._target.name, type=socket.SOCK_STREAM)
            found = await asyncio.wait_for(asking, ANSWER_SECONDS)
        except (DNSError, UnicodeError, asyncio.TimeoutError):
            return None
        # A replica has one address of each family that the name has.
        addresses = {(node.family, node.addr[0]) for node in found.nodes}
        return max(Counter(family for family, _ in addresses).values(), default=None)

    async def close(self) -> None:
        """Ends the questions that are under way."""
        if self._answer:
            async with owning(self._answer):
                pass
        if self._resolver:
            await self._resolver.close()


def _resolver(server: tuple[str, int] | None) -> DNSResolver:
    if server is None:
        return DNSResolver(timeout=TRY_SECONDS, tries=TRY_COUNT)
    address, port = server
    return DNSResolver(
        [address], timeout=TRY_SECONDS, tries=TRY_COUNT, udp_port=port, tcp_port=port
    )


@dataclass(frozen=True)
class Replicas:
    """How many replicas each of the two services has."""

    vision: ReplicaCount
    llm: ReplicaCount
