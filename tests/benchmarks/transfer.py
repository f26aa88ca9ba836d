"""Transfer: a 27.3 MB embedding through the gateway's pipeline, against one hop over loopback."""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc

from gateway.local.processes import ServiceProcess
from protos.process.allocator import keep_freed_memory
from protos.transport import KEEPALIVE_OPTIONS
from tests.benchmarks.hops import BYTE_COUNT, Reader, open_relay
from tests.benchmarks.measurement import Seconds, cpu_seconds, median_ms
from tests.benchmarks.photo import photo
from tests.benchmarks.report import Report

CHECKPOINT = Path(__file__).parents[1] / "data" / "configs" / "InternVL2_5-8B"
REPEAT_COUNT = 25
COMPARED = """\
One hop is the vision service's EncodeImage stream read by another process, which drops the bytes,
or receives them as the LLM service does (`TableUpload`: copied into a table, CRC-32 checked). Two
hops are a whole chat request of one token through the gateway's `ChatPipeline`: the image named,
the embedding piped from the vision service to the LLM service in chunks or read from memory that
both share, the prompt built, the answer read. In the last row the LLM service holds the image
already and no tensor moves. The services are the real ones in processes of their own; their engines
answer at once, and the vision service has the embedding in its cache. CPU times are means per run;
"middle" is the reader, or the gateway's pipeline. Each process keeps freed memory as the services
do. Where three processes share fewer cores, the CPU time of the second hop cannot hide behind
that of the first. Medians; all ways take turns."""

CPU_CLOCKS = ("vision_cpu", "middle_cpu", "llm_cpu")

Way = Callable[[], Awaitable[None]]


class ScriptedService(ServiceProcess):
    """One of the two services over an engine that computes nothing."""

    def __init__(self, name: str, folder: Path, *options: str) -> None:
        arguments = [name, "--checkpoint", str(CHECKPOINT), *options]
        super().__init__("tests.benchmarks.scripted_services", arguments, folder / f"{name}.log")

    def cpu_seconds(self) -> float:
        """Returns the CPU time that it has used."""
        return cpu_seconds(self.pid)


def run(progress: Callable[[str], None]) -> Report:
    """Measures; this process is the reader, or the gateway's pipeline."""
    progress(f"{BYTE_COUNT / 1e6:.1f} MB over loopback")
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder, _services(Path(folder)) as services:
        costs = asyncio.run(_measure(services))
    report = Report(
        title="Transfer of a 27.3 MB embedding (13 tiles of the 8B model), milliseconds",
        compared=COMPARED,
        columns=("way", "wall", "vision CPU", "middle CPU", "LLM CPU", "/ dropped", "/ table"),
    )
    walls = {name: median_ms(seconds["wall"]) for name, seconds in costs.items()}
    dropped, table, *_ = walls.values()
    for name, seconds in costs.items():
        cpus = [statistics.mean(seconds[clock]) * 1e3 for clock in CPU_CLOCKS]
        ratios = [f"{walls[name] / hop:.2f}" for hop in (dropped, table)]
        report.add(name, [*(f"{ms:.1f}" for ms in (walls[name], *cpus)), *ratios], seconds)
    return report


@dataclass(frozen=True)
class Services:
    """The services: of two vision services one shares memory with the LLM service."""

    chunking: ScriptedService
    sharing: ScriptedService
    llm: ScriptedService

    def vision_cpu_seconds(self) -> float:
        """Returns the CPU time of both vision services, of which one is idle."""
        return self.chunking.cpu_seconds() + self.sharing.cpu_seconds()


@contextmanager
def _services(folder: Path) -> Iterator[Services]:
    (chunking := folder / "chunking").mkdir()
    services = Services(
        ScriptedService("vision", chunking, "--shared-memory-byte-count", "0"),
        ScriptedService("vision", folder),
        # Room for one table, so that of two images in turn each has to be sent.
        ScriptedService("llm", folder, "--max-table-byte-count", str(BYTE_COUNT)),
    )
    try:
        for service in vars(services).values():
            service.start()
        for service in vars(services).values():
            service.wait_serving()
        yield services
    finally:
        for service in vars(services).values():
            service.stop()


async def _measure(services: Services) -> Mapping[str, Seconds]:
    images = [photo("JPEG", 1000, 747, seed) for seed in range(4)]
    vision, sharing, llm = (service.address for service in vars(services).values())
    async with (
        grpc.aio.insecure_channel(vision, options=KEEPALIVE_OPTIONS) as channel,
        open_relay(vision, llm, images[:2]) as relay,
        open_relay(sharing, llm, images[2:]) as sharing_relay,
    ):
        reader = Reader(channel)
        ways: Mapping[str, Way] = {
            "one hop, dropped": lambda: reader.drop(images[0]),
            "one hop, into a table": lambda: reader.receive(images[0]),
            "two hops, chat request": relay.send_other_image,
            "two hops, shared memory": sharing_relay.send_other_image,
            "chat request, image held": sharing_relay.ask_again,
        }
        for _ in images:  # each is encoded once
            for way in ways.values():
                await way()
        costs: dict[str, dict[str, list[float]]] = {
            name: {clock: [] for clock in ("wall", *CPU_CLOCKS)} for name in ways
        }
        for _ in range(REPEAT_COUNT):
            for name, way in ways.items():
                for clock, seconds in (await _cost(way, services)).items():
                    costs[name][clock].append(seconds)
    return costs


async def _cost(way: Way, services: Services) -> Mapping[str, float]:
    """Returns the seconds that one run takes, by clock."""
    processes = (services.vision_cpu_seconds, time.process_time, services.llm.cpu_seconds)
    clocks = {"wall": time.perf_counter, **dict(zip(CPU_CLOCKS, processes, strict=True))}
    started = {name: clock() for name, clock in clocks.items()}
    await way()
    return {name: clock() - started[name] for name, clock in clocks.items()}
