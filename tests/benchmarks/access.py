"""Access: what keys, limits and TLS cost a plain request, beside a gateway without them."""

from __future__ import annotations

import asyncio
import json
import random
import ssl
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import aiohttp
import trustme

from gateway.access.new_keys import entry_of, new_key
from gateway.local.health import SILENT
from gateway.local.processes import ServiceProcess
from protos.process.probe import HEALTHY
from tests.benchmarks.measurement import cpu_seconds
from tests.benchmarks.report import Report
from tests.benchmarks.scripted_services import MODEL
from tests.benchmarks.transfer import ScriptedService
from tests.https import issue

KEY_COUNT = 100
BLOCK_COUNT, WARM_UP_COUNT = 150, 5
# One after the other, and at a time.
LONE_COUNT, CROWD_COUNT, CROWD_REQUEST_COUNT = 8, 16, 48
CHAT = "/v1/chat/completions"
BODY = json.dumps(
    {
        "model": MODEL,
        "messages": [{"role": "user", "content": "What is a panda?"}],
        "max_tokens": 1,
    }
).encode()
COMPARED = f"""\
A chat request of text, answered by one token, through gateways that differ in nothing but these
options, in front of the same two services. These are the real ones over engines that answer at
once, so that the shares told are the highest that the options can have. Keys: the last one of
{KEY_COUNT}. Limits: of requests, tokens, images and concurrency, all too wide to be reached. TLS:
of the gateway's clients, on connections that stay. p50 is of one client that asks {LONE_COUNT}
times, one after the other; requests/s are of {CROWD_COUNT} clients with {CROWD_REQUEST_COUNT}
requests. Blocks of both take turns among the gateways, {BLOCK_COUNT} times, in an order drawn anew
each time; each difference is the median of those between a gateway's block and the one without
options in the same turn. CPU time is the gateway process's for one request of the crowd. Client,
gateway and services share the machine's cores: what TLS costs the client is in the p50 and the
requests/s as well."""
PLAIN = "none"


@dataclass(frozen=True)
class Block:
    """What one block of requests took.

    Attributes:
        p50_seconds: of a client alone.
        request_seconds: the crowd's time for one request.
        cpu_seconds: the gateway's CPU time for one of these.
    """

    p50_seconds: float
    request_seconds: float
    cpu_seconds: float


class GatewayProcess(ServiceProcess):
    """A gateway; its log says whether it serves, for some refuse a plain probe."""

    def __init__(self, name: str, folder: Path, *options: str) -> None:
        super().__init__("gateway", [*options, "--log-level", "info"], folder / f"{name}.log")

    def health(self) -> str:
        """See Service."""
        return HEALTHY if b'"serving"' in self.log.read_bytes() else SILENT


@dataclass(frozen=True)
class Way:
    """A gateway, and how a client reaches it."""

    gateway: GatewayProcess
    headers: Mapping[str, str]
    tls: ssl.SSLContext | None

    @property
    def url(self) -> str:
        """Where it is."""
        return f"{'https' if self.tls else 'http'}://localhost:{self.gateway.port}"


def run(progress: Callable[[str], None]) -> Report:
    """Measures; this process is the clients."""
    progress("a plain request with keys, limits and TLS, and without")
    with tempfile.TemporaryDirectory() as folder, _ways(Path(folder)) as ways:
        blocks = asyncio.run(_measure(ways))
    report = Report(
        title="Keys, limits and TLS: what they cost a request",
        compared=COMPARED,
        columns=(
            *("options", "p50, ms", "more, ms", "requests/s", "less, %"),
            *("gateway CPU, ms", "more, ms"),
        ),
    )
    for name, own in blocks.items():
        report.add(name, _cells(own, blocks[PLAIN]), _seconds(own))
    return report


def _cells(own: list[Block], plain: list[Block]) -> list[str]:
    pairs = list(zip(own, plain, strict=True))
    p50 = statistics.median(block.p50_seconds for block in own) * 1e3
    request = statistics.median(block.request_seconds for block in own)
    cpu = statistics.median(block.cpu_seconds for block in own) * 1e3
    more = statistics.median(one.p50_seconds - other.p50_seconds for one, other in pairs) * 1e3
    less = statistics.median(
        1 - other.request_seconds / one.request_seconds for one, other in pairs
    )
    more_cpu = statistics.median(one.cpu_seconds - other.cpu_seconds for one, other in pairs) * 1e3
    return [
        *(f"{p50:.2f}", f"{more:+.3f}", f"{1 / request:.0f}", f"{less * 100:+.1f}"),
        *(f"{cpu:.3f}", f"{more_cpu:+.3f}"),
    ]


def _seconds(blocks: list[Block]) -> dict[str, list[float]]:
    names = ("p50_seconds", "request_seconds", "cpu_seconds")
    return {name: [getattr(block, name) for block in blocks] for name in names}


@contextmanager
def _ways(folder: Path) -> Iterator[dict[str, Way]]:
    services = [ScriptedService(name, folder) for name in ("vision", "llm")]
    addresses = [
        word for service in services for word in (f"--{service.name}-address", service.address)
    ]
    ways = _gateways(folder, addresses)
    processes = [*services, *(way.gateway for way in ways.values())]
    try:
        for process in processes:
            process.start()
        for process in processes:
            process.wait_serving()
        yield ways
    finally:
        for process in reversed(processes):
            process.stop()


def _gateways(folder: Path, addresses: list[str]) -> dict[str, Way]:
    key = new_key()
    entries = "".join(entry_of(f"caller-{n}", new_key()) for n in range(KEY_COUNT - 1))
    keys = f"keys:\n{entries}{entry_of('caller', key)}"
    (plain_keys := folder / "keys.yaml").write_text(keys)
    (limited_keys := folder / "limited-keys.yaml").write_text(
        "defaults: {requests_per_minute: 1000000, tokens_per_minute: 1000000000,"
        f" images_per_minute: 1000000, max_concurrent_request_count: 1000}}\n{keys}"
    )
    authority = trustme.CA()
    files = issue(authority, folder / "tls", "localhost")
    context = ssl.create_default_context()
    authority.configure_trust(context)
    tls = ("--tls-certificate-file", str(files.certificate), "--tls-key-file", str(files.key))
    of_keys, of_limits = (("--api-keys-file", str(file)) for file in (plain_keys, limited_keys))
    headers = {"Authorization": f"Bearer {key}"}

    def way(name: str, *options: str) -> Way:
        gateway = GatewayProcess(name.replace(", ", "-"), folder, *addresses, *options)
        return Way(gateway, headers, context if "TLS" in name else None)

    return {
        PLAIN: way(PLAIN),
        "none, once more": way("none, once more"),
        "keys": way("keys", *of_keys),
        "keys, limits": way("keys, limits", *of_limits),
        "TLS": way("TLS", *tls),
        "keys, limits, TLS": way("keys, limits, TLS", *of_limits, *tls),
    }


async def _measure(ways: Mapping[str, Way]) -> dict[str, list[Block]]:
    async with AsyncExitStack() as exits:
        blocks = {}
        for name, way in ways.items():
            connector = aiohttp.TCPConnector(limit=CROWD_COUNT, ssl=way.tls or True)
            session = aiohttp.ClientSession(way.url, connector=connector, headers=way.headers)
            blocks[name] = partial(_block, await exits.enter_async_context(session), way.gateway)
        chance = random.Random(0)
        taken: dict[str, list[Block]] = {name: [] for name in blocks}
        for _ in range(WARM_UP_COUNT + BLOCK_COUNT):
            for name in chance.sample(list(blocks), len(blocks)):
                taken[name].append(await blocks[name]())
    return {name: own[WARM_UP_COUNT:] for name, own in taken.items()}


async def _block(session: aiohttp.ClientSession, gateway: GatewayProcess) -> Block:
    alone = [await _ask(session) for _ in range(LONE_COUNT)]
    share = CROWD_REQUEST_COUNT // CROWD_COUNT
    cpu, started = cpu_seconds(gateway.pid), time.perf_counter()
    await asyncio.gather(*(_ask_again(session, share) for _ in range(CROWD_COUNT)))
    wall, cpu = time.perf_counter() - started, cpu_seconds(gateway.pid) - cpu
    return Block(statistics.median(alone), wall / CROWD_REQUEST_COUNT, cpu / CROWD_REQUEST_COUNT)


async def _ask_again(session: aiohttp.ClientSession, count: int) -> None:
    for _ in range(count):
        await _ask(session)


async def _ask(session: aiohttp.ClientSession) -> float:
    """Returns the seconds of one request."""
    started = time.perf_counter()
    async with session.post(CHAT, data=BODY) as response:
        assert response.status == 200, await response.text()
        await response.read()
    return time.perf_counter() - started
