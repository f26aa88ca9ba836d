"""The three services as real processes, with a proxy between the gateway and each service."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import grpc
import psutil

from gateway.local.ports import LOOPBACK
from gateway.local.processes import ServiceProcess
from models.demo import DEMO_CHECKPOINT
from protos.internvl.v1 import llm_pb2, llm_pb2_grpc
from protos.process.settings import MIB
from tests.chaos.proxy import Proxy

ServiceName = Literal["vision", "llm", "gateway"]
LinkName = Literal["vision", "llm"]
SERVICE_NAMES: tuple[ServiceName, ...] = ("vision", "llm", "gateway")
MODEL = "internvl-demo"
START_SECONDS = 120.0
DRAIN_SECONDS = 5.0
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


class ChaosStack:
    """Three services that may be killed, stopped and started again, each on its port.

    Attributes:
        services: the processes.
        links: the proxies, between the gateway and each service.
    """

    def __init__(
        self, services: dict[ServiceName, ServiceProcess], links: dict[LinkName, Proxy]
    ) -> None:
        self.services = services
        self.links = links

    @property
    def url(self) -> str:
        """The gateway's address."""
        return f"http://{self.services['gateway'].address}"

    async def kill(self, name: ServiceName) -> None:
        """Ends a process by SIGKILL; it is gone when this returns."""
        await asyncio.to_thread(self.services[name].kill)

    async def terminate(self, name: ServiceName) -> int | None:
        """Ends a process by SIGTERM, and returns its exit status."""
        service = self.services[name]
        service.terminate()
        await asyncio.to_thread(service.wait_ended, DRAIN_SECONDS)
        return service.returncode

    async def start(self, *names: ServiceName) -> None:
        """Starts processes, and returns when they serve."""
        for name in names:
            self.services[name].start()
        waits = [
            asyncio.to_thread(self.services[name].wait_serving, START_SECONDS) for name in names
        ]
        await asyncio.gather(*waits)

    def signal(self, name: ServiceName, signum: signal.Signals) -> None:
        """Sends a signal to a process."""
        os.kill(self.services[name].pid, signum)

    def status(self, name: ServiceName) -> str:
        """Returns a process's state as psutil names it; empty when there is none."""
        try:
            return str(psutil.Process(self.services[name].pid).status())
        except psutil.NoSuchProcess:
            return ""

    def footprints(self) -> dict[ServiceName, Footprint]:
        """Returns what each service holds."""
        return {name: Footprint.of(one.pid) for name, one in self.services.items()}

    async def load(self) -> llm_pb2.GetLoadResponse:
        """Returns the load of the engine, asked past the proxy."""
        async with grpc.aio.insecure_channel(self.services["llm"].address) as channel:
            stub: llm_pb2_grpc.LLMServiceAsyncStub = llm_pb2_grpc.LLMServiceStub(channel)
            return await stub.GetLoad(llm_pb2.GetLoadRequest())


@asynccontextmanager
async def running_stack(
    folder: Path,
    seed: int,
    *,
    gateway_options: Sequence[str] = (),
) -> AsyncIterator[ChaosStack]:
    """Runs the three services; on leaving, all have ended, whatever state they were in.

    Args:
        folder: gets the logs.
        seed: of the proxies' chance.
        gateway_options: further ones.
    """
    key = _written_key(folder / "embedding.key")
    signed = ("--embedding-key-file", str(key))
    vision = ServiceProcess("vision_service", [*VISION_OPTIONS, *signed], folder / "vision.log")
    llm = ServiceProcess("llm_service", [*LLM_OPTIONS, *signed], folder / "llm.log")
    async with AsyncExitStack() as exits:
        links: dict[LinkName, Proxy] = {
            "vision": await exits.enter_async_context(Proxy(vision.port, f"{seed}/v").running()),
            "llm": await exits.enter_async_context(Proxy(llm.port, f"{seed}/l").running()),
        }
        addresses = [f"--{name}-address={LOOPBACK}:{link.port}" for name, link in links.items()]
        options = [*addresses, *GATEWAY_OPTIONS, *gateway_options]
        gateway = ServiceProcess("gateway", options, folder / "gateway.log")
        stack = ChaosStack({"vision": vision, "llm": llm, "gateway": gateway}, links)
        try:
            await stack.start(*SERVICE_NAMES)
            yield stack
        finally:
            for name in SERVICE_NAMES:
                await stack.kill(name)


def _written_key(path: Path) -> Path:
    path.write_bytes(secrets.token_bytes(32))
    path.chmod(0o600)
    return path
