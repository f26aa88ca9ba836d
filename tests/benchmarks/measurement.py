"""How a benchmark measures: variants take turns, so that a slow moment of the machine hits all."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence

Seconds = Mapping[str, Sequence[float]]


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


def median_ms(seconds: Sequence[float]) -> float:
    """Returns the median in milliseconds."""
    return statistics.median(seconds) * 1e3


def cpu_seconds(pid: int) -> float:
    """Returns the CPU time of another process, all its threads, until now; Linux only.

    The number of its clock is that of clock_getcpuclockid(3): (~pid << 3) | CPUCLOCK_SCHED.
    """
    return time.clock_gettime((~pid << 3) | 2)
