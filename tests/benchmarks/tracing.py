"""What traces cost: requests with them and without, in turn, and a span that nobody gets."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

from gateway.local.stack import Stack
from models.demo import DEMO_CHECKPOINT
from protos.process import tracing
from tests.benchmarks.chat_clients import Question, run_clients
from tests.benchmarks.measurement import cpu_seconds
from tests.benchmarks.otlp_sink import running_sink
from tests.benchmarks.report import Report

CLIENT_COUNT, REQUEST_COUNT, ROUND_COUNT = 4, 6, 12
SPAN_COUNT = 200_000
QUESTION = Question("", "What do you see?", 448, 448, token_count=32)
COMPARED = f"""\
Two stacks of gateway, vision service and LLM service with the toy model on this CPU take turns: one
exports all spans and histograms to a collector in a process of its own that drops them, the other
has no `--otlp-endpoint`. In each of {ROUND_COUNT} rounds {CLIENT_COUNT} clients send
{REQUEST_COUNT} requests each, with a new picture and for {QUESTION.token_count} tokens. Requests/s
and CPU time per request are medians; the change is the median of the changes within rounds, so that
a slow moment of the machine hits both. The toy model's requests are the shortest that there are: a
real model's take longer, and a trace of one has as many spans. "A span that nobody gets" is a
`with` block with an attribute where nothing is exported, without the block itself."""


@dataclass
class Way:
    """One of the two stacks, and what its rounds have taken."""

    stack: Stack
    rates: list[float] = field(default_factory=list)
    seconds: dict[str, list[float]] = field(default_factory=dict)

    def run(self, seeds: count[int]) -> None:
        """Sends one round of requests."""
        bodies = [
            [QUESTION.body(next(seeds)) for _ in range(REQUEST_COUNT)] for _ in range(CLIENT_COUNT)
        ]
        before = self._cpu_seconds()
        started = time.perf_counter()
        answers = run_clients(self.stack.url, bodies)
        self.rates.append(len(answers) / (time.perf_counter() - started))
        for name, seconds in self._cpu_seconds().items():
            spent = (seconds - before[name]) / len(answers)
            self.seconds.setdefault(name, []).append(spent)

    def _cpu_seconds(self) -> dict[str, float]:
        processes = {
            "gateway": self.stack.gateway,
            "vision": self.stack.vision,
            "llm": self.stack.llm,
        }
        return {name: cpu_seconds(process.pid) for name, process in processes.items()}


def run(progress: Callable[[str], None]) -> Report:
    """Measures; this process is the clients."""
    progress("traces")
    report = Report(
        title="What traces cost",
        compared=COMPARED,
        columns=("what", "without", "with", "change"),
    )
    without, with_traces = _measure()
    _add(report, "requests/s", without.rates, with_traces.rates, 1)
    for name in without.seconds:
        ways = (without.seconds[name], with_traces.seconds[name])
        _add(report, f"CPU ms a request, {name}", *ways, 1000)
    off = [_nanoseconds() for _ in range(5)]
    cells = [f"{statistics.median(off):.0f}", "-", "-"]
    report.add("a span that nobody gets, ns", cells, {"off": off})
    return report


def _measure() -> tuple[Way, Way]:
    with ExitStack() as exits:
        folder = Path(exits.enter_context(tempfile.TemporaryDirectory()))
        option = f"--otlp-endpoint={exits.enter_context(running_sink())}"
        without = Way(exits.enter_context(_stack(folder / "without")))
        with_traces = Way(exits.enter_context(_stack(folder / "with", option)))
        seeds = count()
        for way in (without, with_traces):
            way.run(seeds)
            way.rates.clear()
            way.seconds.clear()
        for number in range(ROUND_COUNT):
            for way in (without, with_traces)[:: 1 if number % 2 else -1]:
                way.run(seeds)
    return without, with_traces


def _stack(folder: Path, *options: str) -> Stack:
    folder.mkdir()
    threads = ("--torch.thread-count", "1")
    return Stack(
        DEMO_CHECKPOINT, folder, service_arguments=[*threads, *options], gateway_arguments=options
    )


def _add(
    report: Report, what: str, without: Sequence[float], with_traces: Sequence[float], unit: float
) -> None:
    changes = [after / before - 1 for before, after in zip(without, with_traces, strict=True)]
    medians = [f"{unit * statistics.median(values):.2f}" for values in (without, with_traces)]
    seconds: Mapping[str, Sequence[float]] = {"without": without, "with": with_traces}
    report.add(what, [*medians, f"{100 * statistics.median(changes):+.1f} %"], seconds)


def _nanoseconds() -> float:
    started = time.process_time()
    for _ in range(SPAN_COUNT):
        with tracing.span("body", image_index=1):
            pass
    spent = time.process_time() - started
    started = time.process_time()
    for _ in range(SPAN_COUNT):
        pass
    return 1e9 * (spent - (time.process_time() - started)) / SPAN_COUNT
