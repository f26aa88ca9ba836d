"""How a benchmark measures: variants take turns, so that a slow moment of the machine hits all."""

from __future__ import annotations

import statistics
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TypeVar

Seconds = Mapping[str, Sequence[float]]
Result = TypeVar("Result")


def measure(variants: Mapping[str, Callable[[], object]], repeat_count: int) -> Seconds:
    """Returns the wall seconds of each run of each variant.

    Each variant runs once unmeasured, then all of them in turn, `repeat_count` times.
    """
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for run in variants.values():
        run()
    for _ in range(repeat_count):
        for name, run in variants.items():
            started = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - started)
    return seconds


async def take_turns(
    ways: Mapping[str, Callable[[], Awaitable[Result]]], repeat_count: int, warm_up_count: int = 1
) -> dict[str, list[Result]]:
    """Returns the results of each run of each way, without those of the first runs."""
    results: dict[str, list[Result]] = {name: [] for name in ways}
    for _ in range(warm_up_count + repeat_count):
        for name, run in ways.items():
            results[name].append(await run())
    return {name: values[warm_up_count:] for name, values in results.items()}


def median_ms(seconds: Sequence[float]) -> float:
    """Returns the median in milliseconds."""
    return statistics.median(seconds) * 1e3


def cpu_seconds(pid: int) -> float:
    """Returns the CPU time of another process, all its threads, until now; Linux only.

    The number of its clock is that of clock_getcpuclockid(3): (~pid << 3) | CPUCLOCK_SCHED.
    """
    return time.clock_gettime((~pid << 3) | 2)
