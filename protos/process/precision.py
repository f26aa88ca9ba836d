"""Precision: the element type in which this CPU multiplies matrices fast, by measurement.

No library tells of all CPUs alike how well they multiply bfloat16; the time of a product does.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Literal

import structlog

logger = structlog.get_logger()

FloatType = Literal["float32", "bfloat16"]
# Multiplies once; each service makes its own, of the library that it computes with.
Product = Callable[[], object]
MakeProduct = Callable[[FloatType, int, int], Product]

# bfloat16 rounds coarsely, so it must gain something. With units for it products take half of
# the time or less; without them they take as long at best.
LEAST_RATIO = 1.2
TURN_COUNT = 5
# So many rows for each thread are worth handing over, and worth packing the weights for.
WIDTH = 512
THREAD_ROW_COUNT = 128
MAX_ROW_COUNT = 2048
# Emulated, a product takes many times as long: so two are enough to know. For the first one code
# may have been generated.
HOPELESS_RATIO = 2.0
HOPELESS_TURN_COUNT = 2


def faster_type(
    make_product: MakeProduct,
    thread_count: int,
    *,
    clock: Callable[[], float] = time.thread_time,
) -> FloatType:
    """Returns the type in which to compute here, and logs what it was chosen by.

    Products of both types take turns, and the fastest of each counts. It is the calling thread's
    CPU time: beside other programs, or the other service's start, a product waits for its cores
    much longer than it computes, and a bad moment would decide for as long as the service runs.

    Args:
        make_product: makes what multiplies [rows, width] by [width, width] in a type.
        thread_count: by how many threads.
        clock: tells seconds of the calling thread's work.
    """
    row_count = min(thread_count * THREAD_ROW_COUNT, MAX_ROW_COUNT)
    float32, bfloat16 = (make_product(name, row_count, WIDTH) for name in ("float32", "bfloat16"))
    long, short = fastest_of(float32, bfloat16, clock)
    ratio = long / short if short > 0 else 0.0  # some sandboxes' clocks tick too rarely to tell
    chosen: FloatType = "bfloat16" if ratio >= LEAST_RATIO else "float32"
    logger.info(
        "dtype_measured",
        dtype=chosen,
        float32_seconds=round(long, 6),
        bfloat16_seconds=round(short, 6),
        ratio=round(ratio, 2),
        row_count=row_count,
        thread_count=thread_count,
    )
    return chosen


def fastest_of(
    first: Callable[[], object],
    second: Callable[[], object],
    clock: Callable[[], float] = time.thread_time,
) -> tuple[float, float]:
    """Returns the fewest seconds of this thread's work that each of two took, in turns.

    The second is not asked as often where it is hopeless.
    """
    long = short = math.inf
    for turn in range(TURN_COUNT):
        long = min(long, _seconds(first, clock))
        short = min(short, _seconds(second, clock))
        if turn + 1 >= HOPELESS_TURN_COUNT and short > HOPELESS_RATIO * long:
            break
    return long, short


def _seconds(product: Product, clock: Callable[[], float]) -> float:
    started = clock()
    product()
    return clock() - started
