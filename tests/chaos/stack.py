"""The services and gateways as real processes, with a proxy in front of each service's replica."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import grpc
import psutil

from gateway.local.ports import LOOPBACK
from gateway.local.processes import ServiceProcess
from models.demo import DEMO_CHECKPOINT
from protos.internvl.v1 import llm_pb2, llm_pb2_grpc
from protos.process.settings import MIB
from tests.chaos.proxy import Proxy
from tests.chaos.service import BEGUN, OVER
from tests.replicas.fleet import dns_name, host_of, logged, replicas_port
from tests.replicas.names import Names

ServiceName = Literal["vision", "llm", "gateway"]
LinkName = Literal["vision", "llm"]
SERVICE_NAMES: tuple[ServiceName, ...] = ("vision", "llm", "gateway")
LINK_NAMES: tuple[LinkName, LinkName] = ("vision", "llm")
MODULES = {"vision": "vision_service", "llm": "llm_service"}
MODEL = "internvl-demo"
# Of each kind, in a campaign.
REPLICA_COUNT = 2
START_SECONDS = 120.0
# How an IPv6 socket, as gRPC opens it, names an IPv4 address.
MAPPED = "::ffff:"
DRAIN_SECONDS = 5.0
# How long a process may take to end, on a machine that has other things to do.
END_SECONDS = 60.0
REQUEST_SECONDS = 30.0
# Small, so that a few dozen clients fill it.
MAX_REQUEST_COUNT = 40
# What the files of all requests may hold together, without the first 64 KiB of each request.
MAX_HELD_BYTE_COUNT = 8 * MIB
# 6 layers of keys and values, 2 heads of 64 float32: sequences wait for room, and are preempted.
KV_TOKEN_COUNT = 8192
KV_CACHE_BYTE_COUNT = KV_TOKEN_COUNT * 6 * 2 * 2 * 64 * 4

# In float32 on a CPU an answer is the same whatever else is in the batch. Caches are small, so that
# they are full, and give room, soon.
SERVICE_OPTIONS = (
    *("--checkpoint", str(DEMO_CHECKPOINT), "--served-model-name", MODEL),
    *("--torch.device", "cpu", "--torch.dtype", "float32", "--torch.thread-count", "1"),
    *("--drain-seconds", str(DRAIN_SECONDS)),
)
VISION_OPTIONS = (*SERVICE_OPTIONS, "--cache-byte-count", str(8 * MIB))
LLM_OPTIONS = (
    *SERVICE_OPTIONS,
    *("--kv-cache-byte-count", str(KV_CACHE_BYTE_COUNT)),
    *("--max-table-byte-count", str(32 * MIB)),
)
GATEWAY_OPTIONS = (
    *("--max-request-count", str(MAX_REQUEST_COUNT)),
    *("--max-held-byte-count", str(MAX_HELD_BYTE_COUNT)),
    *("--request-seconds", str(REQUEST_SECONDS), "--drain-seconds", str(DRAIN_SECONDS)),
    *("--allowed-private-hosts", f'["{LOOPBACK}"]'),
)


@dataclass(frozen=True)
class Footprint:
    """What a process and those that it has started hold."""

    byte_count: int
    thread_count: int
    descriptor_count: int
    child_count: int
    zombie_count: int

    @classmethod
    def of(cls, pid: int) -> Footprint:
        """Returns that of a process that lives."""
        process = psutil.Process(pid)
        children = process.children(recursive=True)
        dead = [one for one in children if one.status() == psutil.STATUS_ZOMBIE]
        alive = [process, *(one for one in children if one not in dead)]
        return cls(
            sum(one.memory_info().rss for one in alive),
            sum(one.num_threads() for one in alive),
            sum(one.num_fds() for one in alive),
            len(children),
            len(dead),
        )


class Member(NamedTuple):
    """One process of the stack: what it is, and which of its kind."""

    service: ServiceName
    number: int = 0

    def __str__(self) -> str:
        return f"{self.service} {self.number + 1}"


class ChaosStack:
    """Processes that may be killed, stopped and started again, each on its port.

    Attributes:
        services: the processes.
        links: the proxies, which the names of the services lead to.
        names: has the address of each service that is up.
        urls: addresses of the gateways that clients are sent to.
    """

    def __init__(
        self,
        services: dict[Member, ServiceProcess],
        links: dict[Member, Proxy],
        names: Names,
    ) -> None:
        self.services = services
        self.links = links
        self.names = names
        self.urls: list[str] = []

    def replicas(self, name: ServiceName) -> list[Member]:
        """Returns all of a kind."""
        return [member for member in self.services if member.service == name]

    def first(self, name: ServiceName) -> ServiceProcess:
        """Returns the first process of a kind."""
        return self.services[Member(name)]

    def url(self, member: Member) -> str:
        """Returns a gateway's address."""
        return f"http://{self.services[member].address}"

    async def kill(self, member: Member) -> None:
        """Ends a process by SIGKILL; it is gone when this returns."""
        await asyncio.to_thread(self.services[member].kill)
        self._withdraw(member)

    async def terminate(self, member: Member) -> int | None:
        """Ends a process as Kubernetes does, and returns its exit status.

        Nobody is sent to it any more while it drains.
        """
        service = self.services[member]
        self._withdraw(member)
        service.terminate()
        await asyncio.to_thread(service.wait_ended, END_SECONDS)
        return service.returncode

    async def start(self, *members: Member) -> None:
        """Starts processes, and returns when they serve."""
        for member in members:
            self.services[member].start()
        await asyncio.gather(*map(self._publish, members))

    async def _publish(self, member: Member) -> None:
        await asyncio.to_thread(self.services[member].wait_serving, START_SECONDS)
        if member in self.links:
            self.names.publish(dns_name(member.service), self.links[member].host)
        else:
            self.urls.append(self.url(member))

    def _withdraw(self, member: Member) -> None:
        if member in self.links:
            self.names.withdraw(dns_name(member.service), self.links[member].host)
        elif (url := self.url(member)) in self.urls:
            self.urls.remove(url)

    def is_known(self, member: Member) -> bool:
        """Says whether every gateway that is up is connected to a service."""
        link = self.links[member]
        for gateway in self.replicas("gateway"):
            process = psutil.Process(self.services[gateway].pid)
            if self.url(gateway) in self.urls and (link.host, link.port) not in {
                (one.raddr.ip.removeprefix(MAPPED), one.raddr.port)
                for one in process.net_connections("tcp")
                if one.status == psutil.CONN_ESTABLISHED
            }:
                return False
        return True

    def signal(self, member: Member, signum: signal.Signals) -> None:
        """Sends a signal to a process."""
        os.kill(self.services[member].pid, signum)

    def status(self, member: Member) -> str:
        """Returns a process's state as psutil names it; empty when there is none."""
        try:
            return str(psutil.Process(self.services[member].pid).status())
        except psutil.NoSuchProcess:
            return ""

    def in_flight(self, member: Member) -> set[str]:
        """Returns the ids of requests of which a service has begun calls that have not ended well.

        Those of its process before this one are among them, if it was killed.
        """
        count: Counter[str] = Counter()
        for event in logged(self.services[member].log):
            if event.get("event") in (BEGUN, OVER):
                count[event["request_id"]] += 1 if event["event"] == BEGUN else -1
        return {request_id for request_id, left in count.items() if left > 0}

    def footprints(self) -> dict[Member, Footprint]:
        """Returns what each process holds."""
        return {member: Footprint.of(one.pid) for member, one in self.services.items()}

    async def loads(self) -> dict[Member, llm_pb2.GetLoadResponse]:
        """Returns the load of each engine, asked past the proxies."""
        return {member: await self._load(member) for member in self.replicas("llm")}

    async def _load(self, member: Member) -> llm_pb2.GetLoadResponse:
        async with grpc.aio.insecure_channel(self.services[member].address) as channel:
            stub: llm_pb2_grpc.LLMServiceAsyncStub = llm_pb2_grpc.LLMServiceStub(channel)
            return await stub.GetLoad(llm_pb2.GetLoadRequest())


@asynccontextmanager
async def running_stack(
    folder: Path,
    seed: int,
    *,
    replica_count: int = 1,
    gateway_options: Sequence[str] = (),
) -> AsyncIterator[ChaosStack]:
    """Runs the processes; on leaving, all have ended, whatever state they were in.

    Args:
        folder: gets the logs.
        seed: of the proxies' chance.
        replica_count: how many of each kind.
        gateway_options: further ones.
    """
    services = _services(folder, replica_count)
    async with AsyncExitStack() as exits:
        names = await exits.enter_async_context(Names().running())
        ports: dict[str, int] = {name: replicas_port(replica_count) for name in LINK_NAMES}
        links: dict[Member, Proxy] = {}
        for member, service in services.items():
            host = LOOPBACK if replica_count == 1 else host_of(member.number)
            link = Proxy(service.port, f"{seed}/{member}", host, ports[member.service])
            links[member] = await exits.enter_async_context(link.running())
        options = [
            f"--{name}-address={names.target(dns_name(name), port)}" for name, port in ports.items()
        ]
        for index in range(replica_count):
            log = _log(folder, "gateway", index)
            gateway = ServiceProcess("gateway", [*options, *GATEWAY_OPTIONS, *gateway_options], log)
            services[Member("gateway", index)] = gateway
        stack = ChaosStack(services, links, names)
        try:
            for name in SERVICE_NAMES:  # a gateway is ready when both services are found
                await stack.start(*stack.replicas(name))
            yield stack
        finally:
            for member in services:
                await asyncio.to_thread(services[member].kill)


def _services(folder: Path, replica_count: int) -> dict[Member, ServiceProcess]:
    """Returns the replicas of both services, yet to be started."""
    key = _written_key(folder / "embedding.key")
    options = {"vision": VISION_OPTIONS, "llm": LLM_OPTIONS}
    return {
        Member(name, index): ServiceProcess(
            "tests.chaos.service",
            [MODULES[name], *options[name], "--embedding-key-file", str(key)],
            _log(folder, name, index),
        )
        for name in LINK_NAMES
        for index in range(replica_count)
    }


def _log(folder: Path, name: str, index: int) -> Path:
    own = folder / str(index + 1)
    own.mkdir(exist_ok=True)
    return own / f"{name}.log"


def _written_key(path: Path) -> Path:
    path.write_bytes(secrets.token_bytes(32))
    path.chmod(0o600)
    return path
