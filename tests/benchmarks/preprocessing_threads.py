"""Preprocessing on several threads: one picture alone, and as many as the workers can do."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from functools import partial

from tests.benchmarks.decoding import Turn, turn
from tests.benchmarks.measurement import median_ms, take_turns
from tests.benchmarks.photo import photo
from tests.benchmarks.reference import MAX_TILE_COUNT, TILE_SIZE
from tests.benchmarks.report import Report
from vision_service.preprocessor import Preprocessor, PreprocessorLimits
from vision_service.settings import decoder_count, resizing_thread_count

MAX_PIXEL_COUNT = 100_000_000
IDLE_REPEAT_COUNT, FULL_REPEAT_COUNT = 15, 3
IMAGES = (
    ("JPEG", 640, 480),
    ("JPEG", 1000, 747),
    ("JPEG", 1080, 1920),
    ("JPEG", 4000, 3000),
    ("PNG", 1000, 1000),
)
COMPARED = """\
The vision service's preprocessor with {worker_count} workers, whose pictures share so many threads.
"Idle": one picture, from being handed in until its tiles are there. "Full": {in_flight_count} of
them in flight, {image_count} a turn. CPU is that of the process and its workers together. Medians;
all numbers of threads take turns."""


def run(progress: Callable[[str], None]) -> Report:
    """Measures every image with one thread, with all that are used by default, and between."""
    return asyncio.run(_measure(progress, decoder_count(), resizing_thread_count()))


async def _measure(
    progress: Callable[[str], None], worker_count: int, most_thread_count: int
) -> Report:
    in_flight_count, image_count = 2 * worker_count, 4 * worker_count
    report = Report(
        title="Preprocessing: one picture on several threads",
        compared=COMPARED.format(
            worker_count=worker_count, in_flight_count=in_flight_count, image_count=image_count
        ),
        columns=("image, threads", "idle ms", "idle CPU ms", "full images/s", "full CPU ms"),
    )
    async with AsyncExitStack() as stack:
        preprocessors = {
            f"{count}": await stack.enter_async_context(_preprocessor(worker_count, count))
            for count in sorted({1, *(most_thread_count // part or 1 for part in (4, 2, 1))})
        }
        for image in IMAGES:
            name = "{} {}x{}".format(*image)
            progress(name)
            data = photo(*image)
            idle = await take_turns(_ways(preprocessors, [data], 1), IDLE_REPEAT_COUNT)
            full = await take_turns(
                _ways(preprocessors, [data] * image_count, in_flight_count), FULL_REPEAT_COUNT
            )
            for count in preprocessors:
                _add(report, f"{name}, {count}", idle[count], full[count], image_count)
    return report


def _preprocessor(worker_count: int, thread_count: int) -> Preprocessor:
    limits = PreprocessorLimits(
        worker_count, 10**6, MAX_PIXEL_COUNT, 2**31, 30.0, thread_count=thread_count
    )
    return Preprocessor(TILE_SIZE, limits)


def _ways(
    preprocessors: Mapping[str, Preprocessor], images: Sequence[bytes], in_flight_count: int
) -> dict[str, Callable[[], Awaitable[Turn]]]:
    return {
        count: partial(turn, partial(_tile, preprocessor), images, in_flight_count)
        for count, preprocessor in preprocessors.items()
    }


async def _tile(preprocessor: Preprocessor, data: bytes) -> object:
    return await preprocessor.tile(data, MAX_TILE_COUNT)


def _add(
    report: Report, case: str, idle: Sequence[Turn], full: Sequence[Turn], image_count: int
) -> None:
    idle_seconds, full_seconds = ([turn.seconds for turn in turns] for turns in (idle, full))
    cells = [
        f"{median_ms(idle_seconds):.1f}",
        f"{median_ms([turn.cpu_seconds for turn in idle]):.1f}",
        f"{1e3 * image_count / median_ms(full_seconds):.1f}",
        f"{median_ms([turn.cpu_seconds for turn in full]) / image_count:.1f}",
    ]
    report.add(case, cells, {"idle": idle_seconds, "full": full_seconds})
