"""Streams: what a token costs between the engine and the client, by process."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import aiohttp

from gateway.local.processes import ServiceProcess
from protos.process.logs import new_request_id
from tests.benchmarks.crossover.clients import receive
from tests.benchmarks.measurement import cpu_seconds
from tests.benchmarks.report import Report
from tests.benchmarks.scripted_services import MODEL, STEP_SECONDS
from tests.benchmarks.transfer import ScriptedService

ROUND_COUNT = 5
# Tokens of an answer, by the number of streams: a load takes some seconds.
TOKEN_COUNTS = {1: 1000, 8: 600, 32: 300, 64: 200}
WAYS: Mapping[str, Sequence[str]] = {
    "paced": (),
    "every token": ("--max-messages-per-second", "1000000"),
}
PROCESSES = ("llm", "gateway", "client")
COMPARED = f"""\
Streamed chat answers over HTTP, from a gateway and an LLM service in processes of their own, over
an engine that gives each sequence one token every {1e3 * STEP_SECONDS:g} ms and computes nothing.
One process more has the clients. CPU time is that of a whole process for one token; medians of
{ROUND_COUNT} rounds. "Paced" has the default --max-messages-per-second, "every token" no bound. "At
best" is the milliseconds a token that follow where each process has a core of its own: those of the
engine's step, or of all streams' tokens in the process that has most to do with them. Measured are
the rest: tokens a message; milliseconds a token (TPOT) and between arrivals. Where the processes
share fewer cores, or others use them, these say less than the CPU times."""


@dataclass(frozen=True)
class Answer:
    """One answer.

    Attributes:
        token_count: its tokens.
        message_count: events that brought some.
        arrivals: when events came, one or several at a time.
    """

    token_count: int
    message_count: int
    arrivals: Sequence[float]

    @property
    def token_seconds(self) -> float:
        """Of each token after the first (TPOT)."""
        return (self.arrivals[-1] - self.arrivals[0]) / (self.token_count - 1)


@dataclass(frozen=True)
class Load:
    """One load: its answers, and the CPU seconds of each process."""

    answers: Sequence[Answer]
    cpu: Mapping[str, float]

    @property
    def token_count(self) -> int:
        """Tokens of all answers."""
        return sum(answer.token_count for answer in self.answers)

    @property
    def message_count(self) -> int:
        """Messages of all answers."""
        return sum(answer.message_count for answer in self.answers)

    @property
    def gaps(self) -> list[float]:
        """Seconds between arrivals."""
        return [
            later - earlier
            for answer in self.answers
            for earlier, later in pairwise(answer.arrivals)
        ]


@dataclass
class Way:
    """A gateway and an LLM service, and the loads that they have borne."""

    name: str
    llm: ScriptedService
    gateway: ServiceProcess
    loads: dict[int, list[Load]] = field(default_factory=dict)

    def run(self, clients: Executor, stream_count: int) -> None:
        """Asks for so many answers at a time."""
        before = [cpu_seconds(process.pid) for process in (self.llm, self.gateway)]
        answers, client = clients.submit(_ask_all, self.gateway.url, stream_count).result()
        after = [cpu_seconds(process.pid) for process in (self.llm, self.gateway)]
        llm, gateway = (end - start for start, end in zip(before, after, strict=True))
        cpu = {"llm": llm, "gateway": gateway, "client": client}
        self.loads.setdefault(stream_count, []).append(Load(answers, cpu))


def run(progress: Callable[[str], None]) -> Report:
    """Measures."""
    progress("streams of tokens")
    report = Report(
        title="Streams: CPU microseconds a token",
        compared=COMPARED,
        columns=(
            *("messages, streams", "LLM service", "gateway", "client", "at best, ms a token"),
            *("tokens a message", "TPOT p50, ms", "gap p50", "gap p99"),
        ),
    )
    for way in _measure():
        for stream_count, loads in way.loads.items():
            _add(report, f"{way.name}, {stream_count}", stream_count, loads)
    return report


def _measure() -> Sequence[Way]:
    with ExitStack() as exits:
        folder = Path(exits.enter_context(tempfile.TemporaryDirectory()))
        ways = exits.enter_context(_ways(folder))
        context = multiprocessing.get_context("spawn")
        clients = exits.enter_context(ProcessPoolExecutor(1, context))
        for way in ways:
            way.run(clients, 8)
            way.loads.clear()
        for _ in range(ROUND_COUNT):
            for stream_count in TOKEN_COUNTS:
                for way in ways:
                    way.run(clients, stream_count)
    return ways


@contextmanager
def _ways(folder: Path) -> Iterator[Sequence[Way]]:
    vision = ScriptedService("vision", folder)
    ways = [_way(folder / name, name, vision, options) for name, options in WAYS.items()]
    processes = [vision, *(process for way in ways for process in (way.llm, way.gateway))]
    with ExitStack() as exits:
        for process in processes:
            process.start()
            exits.callback(process.stop)
        for process in processes:
            process.wait_serving()
        yield ways


def _way(folder: Path, name: str, vision: ScriptedService, options: Sequence[str]) -> Way:
    folder.mkdir()
    llm = ScriptedService("llm", folder, *options)
    addresses = ("--vision-address", vision.address, "--llm-address", llm.address)
    return Way(name, llm, ServiceProcess("gateway", addresses, folder / "gateway.log"))


def _ask_all(url: str, stream_count: int) -> tuple[list[Answer], float]:
    """Returns the answers, and the CPU seconds of this process."""
    before = time.process_time()
    answers = asyncio.run(_ask_side_by_side(url, stream_count))
    return answers, time.process_time() - before


async def _ask_side_by_side(url: str, stream_count: int) -> list[Answer]:
    body = json.dumps(
        {
            "model": MODEL,
            "messages": [{"role": "user", "content": "What do you see?"}],
            "max_tokens": TOKEN_COUNTS[stream_count],
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
    ).encode()
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http:
        return await asyncio.gather(*(_ask(http, url, body) for _ in range(stream_count)))


async def _ask(http: aiohttp.ClientSession, url: str, body: bytes) -> Answer:
    stream = await receive(http, url, body, new_request_id())
    *chunks, usage = map(json.loads, stream.events())
    texts = [choice["delta"].get("content") for chunk in chunks for choice in chunk["choices"]]
    return Answer(usage["usage"]["completion_tokens"], len([*filter(None, texts)]), stream.arrivals)


def _add(report: Report, case: str, stream_count: int, loads: Sequence[Load]) -> None:
    costs = {name: [load.cpu[name] / load.token_count for load in loads] for name in PROCESSES}
    medians = {name: statistics.median(seconds) for name, seconds in costs.items()}
    best = max(STEP_SECONDS, stream_count * max(medians.values()))
    tpots = [statistics.median(it.token_seconds for it in load.answers) for load in loads]
    gaps = [gap for load in loads for gap in load.gaps]
    milliseconds = (statistics.median(tpots), *_p50_and_p99(gaps))
    cells = [
        *(f"{1e6 * median:.0f}" for median in medians.values()),
        f"{1e3 * best:.2f}",
        f"{statistics.median(load.token_count / load.message_count for load in loads):.1f}",
        *(f"{1e3 * seconds:.2f}" for seconds in milliseconds),
    ]
    report.add(case, cells, {**costs, "TPOT": tpots})


def _p50_and_p99(values: Sequence[float]) -> tuple[float, float]:
    cuts = statistics.quantiles(values, n=100)
    return cuts[49], cuts[98]
