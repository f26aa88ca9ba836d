"""Transfer under TLS: a 27.3 MB embedding over plain, encrypted and mutual connections in turn."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from gateway.local.health import SILENT
from gateway.services.channel import VISION_SERVICE, ServiceTLS, open_channel
from protos.process.allocator import keep_freed_memory
from protos.process.probe import HEALTHY
from tests.benchmarks.hops import BYTE_COUNT, Reader, open_relay
from tests.benchmarks.measurement import Seconds, median_ms, take_turns
from tests.benchmarks.photo import photo
from tests.benchmarks.report import Report
from tests.benchmarks.transfer import ScriptedService
from tests.certificates import Authority, write_files

REPEAT_COUNT = 25
CLIENT = "gateway.internal"
COMPARED = """\
The hops are those of transfer.md: one from the vision service into a table as the LLM service has
it, and two in a whole chat request of one token through the gateway's `ChatPipeline`. TLS encrypts
both of the gateway's connections (TLS 1.3 with AES-GCM, as gRPC chooses); mutual TLS has the
gateway show a certificate as well, whose name the services look up at each call. In shared memory
the rows are not encrypted: only where they lie goes over the connections. "middle" is the reader,
or the gateway's pipeline; "CPU" is the sum of the three. Medians; all ways take turns, and each has
services of its own."""

CPU_CLOCKS = ("vision_cpu", "middle_cpu", "llm_cpu")
Way = Callable[[], Awaitable[Mapping[str, float]]]
PLAIN, SERVER, MUTUAL = KINDS = ("plain", "TLS", "mutual TLS")


class EncryptedService(ScriptedService):
    """One of the two services; its log says whether it serves, as a plain probe is refused."""

    def health(self) -> str:
        """See Service."""
        return HEALTHY if b'"serving"' in self.log.read_bytes() else SILENT


@dataclass(frozen=True)
class Route:
    """Two services, and how the gateway reaches them; without a folder in common in chunks."""

    vision: EncryptedService
    llm: EncryptedService
    tls: ServiceTLS | None

    def cpu_clocks(self) -> Mapping[str, Callable[[], float]]:
        """Returns what reads the CPU seconds of the three processes."""
        clocks = (self.vision.cpu_seconds, time.process_time, self.llm.cpu_seconds)
        return dict(zip(CPU_CLOCKS, clocks, strict=True))


def run(progress: Callable[[str], None]) -> Report:
    """Measures; this process is the reader, or the gateway's pipeline."""
    progress(f"{BYTE_COUNT / 1e6:.1f} MB over loopback, plain and encrypted")
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder, _routes(Path(folder)) as routes:
        costs = asyncio.run(_measure(routes))
    report = Report(
        title="Transfer of a 27.3 MB embedding under TLS, milliseconds",
        compared=COMPARED,
        columns=("way", "wall", "vision CPU", "middle CPU", "LLM CPU", "CPU", "CPU / plain"),
    )
    cpus = {
        name: [median_ms(seconds[clock]) for clock in CPU_CLOCKS] for name, seconds in costs.items()
    }
    for name, seconds in costs.items():
        plain = sum(cpus[f"{name.partition(',')[0]}, {PLAIN}"])
        cells = [f"{ms:.1f}" for ms in (median_ms(seconds["wall"]), *cpus[name], sum(cpus[name]))]
        report.add(name, [*cells, f"{sum(cpus[name]) / plain:.2f}"], seconds)
    return report


@contextmanager
def _routes(folder: Path) -> Iterator[Mapping[str, Route]]:
    routes = {
        f"{name}{' in shared memory' if is_shared else ''}": _route(folder, name, is_shared)
        for is_shared in (False, True)
        for name in KINDS
    }
    services = [each for route in routes.values() for each in (route.vision, route.llm)]
    try:
        for service in services:
            service.start()
        for service in services:
            service.wait_serving()
        yield routes
    finally:
        for service in services:
            service.stop()


def _route(folder: Path, kind: str, is_shared: bool) -> Route:
    """Returns two services that have not started."""
    (own := folder / f"{kind}{is_shared}").mkdir()
    options, tls = _encryption(own, kind)
    chunks = () if is_shared else ("--shared-memory-byte-count", "0")
    # Room for one table, so that of two images in turn each has to be sent.
    room = ("--max-table-byte-count", str(BYTE_COUNT))
    return Route(
        EncryptedService("vision", own, *options, *chunks),
        EncryptedService("llm", own, *options, *room),
        tls,
    )


def _encryption(folder: Path, kind: str) -> tuple[Sequence[str], ServiceTLS | None]:
    """Returns the options of the services, and how the gateway reaches them."""
    if kind == PLAIN:
        return (), None
    authority = Authority()
    server = write_files(folder / "server", authority.issue("127.0.0.1"), authority.pem)
    options = [f"--tls-certificate-file={server.certificate}", f"--tls-key-file={server.key}"]
    if kind == MUTUAL:
        options += [f"--tls-client-ca-file={server.authorities}", f"--tls-client-names={CLIENT}"]
    pair = authority.issue(CLIENT) if kind == MUTUAL else None
    return options, ServiceTLS(write_files(folder / "gateway", pair, authority.pem))


async def _measure(routes: Mapping[str, Route]) -> Mapping[str, Seconds]:
    async with AsyncExitStack() as exits:
        one_hop: dict[str, Way] = {}
        two_hops: dict[str, Way] = {}
        for name, route in routes.items():
            images = [photo("JPEG", 1000, 747, seed) for seed in range(2)]
            vision, llm = route.vision.address, route.llm.address
            relay = await exits.enter_async_context(open_relay(vision, llm, images, route.tls))
            two_hops[f"two hops, {name}"] = partial(_cost, relay.send_other_image, route)
            if "shared" not in name:
                opening = open_channel(vision, VISION_SERVICE, route.tls)
                reader = Reader(await exits.enter_async_context(opening))
                receive = partial(reader.receive, images[0])
                one_hop[f"one hop, {name}"] = partial(_cost, receive, route)
        costs = await take_turns(one_hop | two_hops, REPEAT_COUNT, warm_up_count=4)
    return {
        name: {clock: [run[clock] for run in runs] for clock in ("wall", *CPU_CLOCKS)}
        for name, runs in costs.items()
    }


async def _cost(way: Callable[[], Awaitable[None]], route: Route) -> Mapping[str, float]:
    """Returns the seconds that one run takes, by clock."""
    clocks = {"wall": time.perf_counter, **route.cpu_clocks()}
    started = {name: clock() for name, clock in clocks.items()}
    await way()
    return {name: clock() - started[name] for name, clock in clocks.items()}
