"""The engine's process: what handing a token on costs there, and in the service."""

from __future__ import annotations

import asyncio
import statistics
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from contextlib import aclosing, asynccontextmanager, contextmanager

import msgspec
import torch

from llm_service.engines.base import Prompt, Request
from llm_service.engines.output_queue import OutputQueue
from llm_service.engines.process.engine import ProcessEngine
from llm_service.engines.process.messages import Facts
from llm_service.engines.steps import QueueSink
from llm_service.sampling import SamplingParams
from llm_service.table_arena import SharedArena
from protos.process.engine_link import Start, await_ready, start_own_host
from protos.process.threads import give_lock_away_soon
from tests.benchmarks.measurement import cpu_seconds
from tests.benchmarks.report import Report
from tests.benchmarks.stepping_engine import SteppingEngine

PART = "tests.benchmarks.stepping_engine"
SEQUENCE_COUNTS = (1, 64)
ROUND_COUNT = 5
SECONDS = 1.0
PROMPT = Prompt([1, 2, 3], torch.empty(0, 8))
COMPARED = f"""\
An engine that computes nothing gives each sequence a token every 2 ms from a thread of its own; one
event loop reads them all, and does nothing with them. CPU time is that of a whole process, its
sleeping and waking included, for one token; medians of {ROUND_COUNT} rounds of {SECONDS:g} s in
turn. "In the service": engine and loop are in one process, as with --engine-process none. "Own":
the engine is in a process of its own, whose thread writes a frame a step."""


def run(progress: Callable[[str], None]) -> Report:
    """Measures both places with one sequence and with 64."""
    report = Report(
        "CPU microseconds a token, between the engine's thread and the service's event loop",
        COMPARED,
        ("sequences", "in the service", "own: service", "own: engine's process"),
    )
    for sequence_count in SEQUENCE_COUNTS:
        progress(f"{sequence_count} sequences")
        rounds = [asyncio.run(_round(sequence_count)) for _ in range(ROUND_COUNT)]
        costs = {name: [each[name] for each in rounds] for name in rounds[0]}
        cells = [f"{1e6 * statistics.median(values):.1f}" for values in costs.values()]
        report.add(str(sequence_count), cells, costs)
    return report


async def _round(sequence_count: int) -> Mapping[str, float]:
    with _as_with_an_engine():
        here = await _here(sequence_count)
    async with _process_engine() as (engine, pid):
        service, host = await _elsewhere(engine, pid, sequence_count)
    return {"in the service": here, "service": service, "engine's process": host}


@contextmanager
def _as_with_an_engine() -> Iterator[None]:
    before = sys.getswitchinterval()
    give_lock_away_soon()
    try:
        yield
    finally:
        sys.setswitchinterval(before)


async def _here(sequence_count: int) -> float:
    engine = SteppingEngine()
    sink = QueueSink(asyncio.get_running_loop())
    request = Request(PROMPT, SamplingParams())
    count = 0

    async def read() -> None:
        nonlocal count
        outputs = OutputQueue(request.pacing)
        leave = await engine.submit(request, sink, outputs)
        try:
            while True:
                output = await outputs.take()
                count += len(output.token_ids)
        finally:
            leave()

    async with _reading(read, sequence_count):
        before, used = count, time.process_time()
        await asyncio.sleep(SECONDS)
        cost = (time.process_time() - used) / (count - before)
    await engine.close()
    return cost


async def _elsewhere(engine: ProcessEngine, pid: int, sequence_count: int) -> tuple[float, float]:
    count = 0

    async def read() -> None:
        nonlocal count
        async with aclosing(engine.generate(Request(PROMPT, SamplingParams()))) as outputs:
            async for output in outputs:
                count += len(output.token_ids)

    async with _reading(read, sequence_count):
        before, used, used_there = count, time.process_time(), cpu_seconds(pid)
        await asyncio.sleep(SECONDS)
        token_count = count - before
        costs = time.process_time() - used, cpu_seconds(pid) - used_there
    return costs[0] / token_count, costs[1] / token_count


@asynccontextmanager
async def _reading(
    read: Callable[[], Coroutine[None, None, None]], sequence_count: int
) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(read()) for _ in range(sequence_count)]
    await asyncio.sleep(0.2)
    yield
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@asynccontextmanager
async def _process_engine() -> AsyncIterator[tuple[ProcessEngine, int]]:
    arena = SharedArena(4096)
    link, process = start_own_host(PART)
    facts = await asyncio.to_thread(await_ready, link, Start(PART, b""), (arena.file.number,))
    engine = ProcessEngine(link, msgspec.msgpack.decode(facts, type=Facts), arena, process)
    yield engine, process.pid
    await engine.close()
