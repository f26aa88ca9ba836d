"""Several replicas of each process on this machine, behind names that a test can change."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from gateway.local.health import SILENT
from gateway.local.ports import LOOPBACK, common_port, free_port
from gateway.local.processes import ENDED, POLL_SECONDS, ServiceProcess, StartError
from tests.replicas.names import Names

Kind = Literal["vision", "llm"]
KINDS: tuple[Kind, Kind] = ("vision", "llm")
# Of one kind: 127.0.0.2 and the addresses after it.
MAX_REPLICA_COUNT = 8
START_SECONDS = 120.0
DRAIN_SECONDS = 30.0


@dataclass(frozen=True)
class Program:
    """What each replica of a kind runs: a module, with arguments."""

    module: str
    arguments: Sequence[str] = ()


def scripted(kind: Kind, **options: float) -> Program:
    """Returns a scripted service; `options` as in tests.replicas.scripted."""
    words = [f"--{name.replace('_', '-')}={value:g}" for name, value in options.items()]
    return Program("tests.replicas.scripted", [f"--service={kind}", *words])


def has_loopback_addresses() -> bool:
    """Says whether this machine listens on 127.0.0.2 and those after it; macOS does not."""
    try:
        for host in map(host_of, range(MAX_REPLICA_COUNT)):
            with socket.socket() as server:
                server.bind((host, 0))
    except OSError:
        return False
    return True


def host_of(index: int) -> str:
    """Returns the address of a kind's replica."""
    return f"127.0.0.{2 + index}"


def dns_name(kind: str) -> str:
    """Returns the name under which gateways find a kind's replicas."""
    return f"{kind}.test"


def replicas_port(replica_count: int = MAX_REPLICA_COUNT) -> int:
    """Returns a port that is free on all replicas' addresses; of one replica, on the usual one."""
    several = replica_count > 1
    return common_port(
        [host_of(index) for index in range(replica_count)] if several else [LOOPBACK]
    )


class Replica(ServiceProcess):
    """A process of the fleet.

    Attributes:
        dns_name: the name under which its kind is found; empty for a gateway.
    """

    def __init__(
        self, program: Program, log: Path, port: int, host: str, dns_name: str = ""
    ) -> None:
        super().__init__(program.module, [*program.arguments, f"--host={host}"], log, port, host)
        self.dns_name = dns_name

    def __repr__(self) -> str:
        return f"{self.name} {self.address}"

    def events(self, event: str) -> list[dict[str, Any]]:
        """Returns the lines of its log with this event, in order."""
        return [one for one in logged(self.log) if one.get("event") == event]

    def request_ids(self, event: str) -> list[str]:
        """Returns the requests that had this event here, in order."""
        return [str(one["request_id"]) for one in self.events(event)]

    def stop_running(self) -> None:
        """Makes the process hang until `go_on`."""
        os.kill(self.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        """Lets a process that hangs run again."""
        os.kill(self.pid, signal.SIGCONT)


def logged(log: Path) -> list[dict[str, Any]]:
    """Returns the events in a log."""
    lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
    return [event for event in map(_parsed, lines) if event]


def _parsed(line: str) -> dict[str, Any]:
    try:
        return dict(json.loads(line))
    except ValueError:  # a warning of a library
        return {}


@dataclass
class Fleet:
    """The processes, and the names by which gateways find the services."""

    folder: Path
    names: Names
    ports: Mapping[Kind, int]
    vision: list[Replica] = field(default_factory=list)
    llm: list[Replica] = field(default_factory=list)
    gateways: list[Replica] = field(default_factory=list)

    @property
    def services(self) -> list[Replica]:
        """All but the gateways."""
        return [*self.vision, *self.llm]

    @property
    def urls(self) -> list[str]:
        """The gateways' addresses."""
        return [f"http://{one.address}" for one in self.gateways]

    def __iter__(self) -> Iterator[Replica]:
        return iter([*self.vision, *self.llm, *self.gateways])

    def add(self, kind: Kind, program: Program) -> Replica:
        """Returns one replica more, yet to be started."""
        replicas = self.vision if kind == "vision" else self.llm
        index = len(replicas)
        log = _log(self.folder, kind, index)
        replica = Replica(program, log, self.ports[kind], host_of(index), dns_name(kind))
        replicas.append(replica)
        return replica

    async def start(self, *replicas: Replica) -> None:
        """Starts processes; each one's address is published once it serves."""
        for replica in replicas:
            replica.start()
        await asyncio.gather(*map(self._publish, replicas))

    async def _publish(self, replica: Replica) -> None:
        await asyncio.to_thread(replica.wait_serving, START_SECONDS)
        if replica.dns_name:
            self.names.publish(replica.dns_name, replica.host)

    def withdraw(self, replica: Replica) -> None:
        """Takes a replica's address from its name."""
        self.names.withdraw(replica.dns_name, replica.host)

    async def kill(self, replica: Replica) -> None:
        """Ends a process by SIGKILL; its name keeps the address, as nobody has noticed yet."""
        await asyncio.to_thread(replica.kill)
        assert replica.returncode == -signal.SIGKILL

    async def terminate(self, replica: Replica) -> None:
        """Ends a process as Kubernetes does: its address goes, SIGTERM, and its drain."""
        self.withdraw(replica)
        replica.terminate()
        await asyncio.to_thread(replica.wait_ended, DRAIN_SECONDS)
        assert replica.returncode == 0

    async def restore(self) -> None:
        """Starts again what has ended, and publishes all addresses."""
        await self.start(*(one for one in self if not one.is_alive()))
        for replica in self.services:
            self.names.publish(replica.dns_name, replica.host)


@asynccontextmanager
async def running_fleet(
    folder: Path,
    programs: Mapping[Kind, Sequence[Program]],
    *,
    gateway_count: int = 1,
    gateway_arguments: Sequence[str] = (),
) -> AsyncIterator[Fleet]:
    """Runs replicas of both services and gateways; on leaving, all have ended, in whatever state.

    Args:
        folder: gets a folder with its log for each.
        programs: one for each replica; of a kind without, replicas come later.
        gateway_count: how many gateways, each of which uses all replicas.
        gateway_arguments: further ones.
    """
    async with Names().running() as names:
        fleet = Fleet(folder, names, {kind: replicas_port() for kind in KINDS})
        for kind in KINDS:
            for program in programs.get(kind, ()):
                fleet.add(kind, program)
        targets = [
            f"--{kind}-address={names.target(dns_name(kind), fleet.ports[kind])}" for kind in KINDS
        ]
        gateway = Program("gateway", [*targets, *gateway_arguments])
        for index in range(gateway_count):
            log = _log(folder, "gateway", index)
            fleet.gateways.append(Replica(gateway, log, free_port(), LOOPBACK))
        try:
            await fleet.start(*fleet.services)
            for replica in fleet.gateways:
                replica.start()
            await asyncio.gather(*map(_lives, fleet.gateways))
            yield fleet
        finally:
            for replica in fleet:
                await asyncio.to_thread(replica.kill)


async def _lives(gateway: Replica) -> None:
    """Waits until a gateway says that it is ready, or that it is not."""
    deadline = time.monotonic() + START_SECONDS
    while (health := await asyncio.to_thread(gateway.health)) in (SILENT, ENDED):
        if health == ENDED or time.monotonic() > deadline:
            raise StartError(f"{gateway}: {gateway.last_words()}")
        await asyncio.sleep(POLL_SECONDS)


def _log(folder: Path, name: str, index: int) -> Path:
    own = folder / str(index)
    own.mkdir(parents=True, exist_ok=True)
    return own / f"{name}.log"
