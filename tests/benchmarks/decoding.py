"""Decoding: worker processes against threads, images a second and how long each one takes.

`python -m tests.benchmarks.decoding --out DIR` prints a table and writes it to the folder.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import os
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks.measurement import cpu_seconds, take_turns
from tests.benchmarks.photo import photo
from tests.benchmarks.report import Report
from tests.tiled_files import tile_file
from vision_service.preprocessor import Preprocessor, PreprocessorLimits
from vision_service.tiling import TiledImage

TILE_SIZE = 448
MAX_TILE_COUNT = 12
MAX_PIXEL_COUNT = 40_000_000
IMAGES = (
    ("JPEG", 640, 480),
    ("PNG", 800, 600),
    ("JPEG", 1000, 747),
    ("GIF", 500, 400),
    ("JPEG", 1920, 1080),
    ("WEBP", 1600, 1200),
    ("BMP", 1024, 768),
    ("JPEG", 4000, 3000),
)
IN_FLIGHT_COUNTS = (1, 4, 16)
COMPARED = """\
Both decode and tile the same files, {images}, in the same order, with {worker_count} workers.
"Threads" is `tile_file` on a ThreadPoolExecutor, as the service did it before; "processes" is its
`Preprocessor`. So many images are in flight at all times. Both take turns, {repeat_count} times
{image_count} images each. CPU is that of the process and of its workers together."""

Tile = Callable[[bytes], Awaitable[object]]


@dataclass(frozen=True)
class Turn:
    """One way's images, one turn.

    Attributes:
        latencies: seconds of each image, from being handed in until its tiles are there.
        seconds: of the turn.
        cpu_seconds: that the process and its workers took.
    """

    latencies: Sequence[float]
    seconds: float
    cpu_seconds: float


async def measure(worker_count: int, repeat_count: int, image_count: int) -> Report:
    """Measures both ways with each number of images in flight."""
    files = [photo(*image) for image in IMAGES]
    report = Report(
        title="Decoding: processes against threads",
        compared=COMPARED.format(
            images=", ".join(f"{name} {width}x{height}" for name, width, height in IMAGES),
            worker_count=worker_count,
            repeat_count=repeat_count,
            image_count=image_count,
        ),
        columns=("in flight, way", "images/s", "median ms", "p99 ms", "CPU ms an image"),
    )
    limits = PreprocessorLimits(worker_count, 10**6, MAX_PIXEL_COUNT, 2**31, 10.0)
    images = [files[index % len(files)] for index in range(image_count)]
    with ThreadPoolExecutor(worker_count) as pool:
        async with Preprocessor(TILE_SIZE, limits) as preprocessor:
            await asyncio.gather(*(preprocessor.tile(files[0], 1) for _ in range(worker_count)))
            ways: dict[str, Tile] = {
                "threads": lambda data: _tile_on(pool, data),
                "processes": lambda data: preprocessor.tile(data, MAX_TILE_COUNT),
            }
            for count in IN_FLIGHT_COUNTS:
                turns = await take_turns(
                    {
                        way: functools.partial(turn, tile, images, count)
                        for way, tile in ways.items()
                    },
                    repeat_count,
                )
                for way, found in turns.items():
                    _add(report, f"{count}, {way}", found, image_count)
    return report


async def _tile_on(pool: ThreadPoolExecutor, data: bytes) -> TiledImage:
    tile = functools.partial(
        tile_file,
        data,
        tile_size=TILE_SIZE,
        max_tile_count=MAX_TILE_COUNT,
        max_pixel_count=MAX_PIXEL_COUNT,
    )
    return await asyncio.get_running_loop().run_in_executor(pool, tile)


async def turn(tile: Tile, images: Sequence[bytes], in_flight_count: int) -> Turn:
    """Tiles images, so many of them in flight at all times."""
    left, latencies = iter(images), []

    async def client() -> None:
        for data in left:
            started = time.perf_counter()
            await tile(data)
            latencies.append(time.perf_counter() - started)

    started, cpu_started = time.perf_counter(), _cpu_seconds()
    await asyncio.gather(*(client() for _ in range(in_flight_count)))
    return Turn(latencies, time.perf_counter() - started, _cpu_seconds() - cpu_started)


def _cpu_seconds() -> float:
    """Returns the CPU time of this process and of those that it has started; Linux only."""
    children = [file.read_text().split() for file in Path("/proc/self/task").glob("*/children")]
    workers = sum(cpu_seconds(int(pid)) for pids in children for pid in pids)
    return time.process_time() + workers


def _add(report: Report, case: str, turns: Sequence[Turn], image_count: int) -> None:
    latencies = [seconds for turn in turns for seconds in turn.latencies]
    rates = [image_count / turn.seconds for turn in turns]
    cells = [
        f"{statistics.median(rates):.1f}",
        f"{1e3 * statistics.median(latencies):.1f}",
        f"{1e3 * statistics.quantiles(latencies, n=100)[-1]:.1f}",
        f"{1e3 * sum(turn.cpu_seconds for turn in turns) / len(latencies):.1f}",
    ]
    report.add(case, cells, {"latency": latencies, "turn": [turn.seconds for turn in turns]})


def main() -> None:
    """Measures, prints the table and writes it."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.decoding")
    parser.add_argument("--out", type=Path, required=True, help="folder of the report")
    parser.add_argument("--workers", type=int, default=4, help="threads, and processes")
    parser.add_argument("--repeats", type=int, default=5, help="turns of each way")
    parser.add_argument("--images", type=int, default=64, help="images a turn")
    options = parser.parse_args()
    load, _, _ = os.getloadavg()
    report = asyncio.run(measure(options.workers, options.repeats, options.images))
    report.write(options.out, "decoding", load)
    print(f"{report.title}\n\n{report.table()}", flush=True)


if __name__ == "__main__":
    main()
