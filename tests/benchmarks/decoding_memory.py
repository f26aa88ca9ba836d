"""Decoding's memory: many large pictures at once, and the most that all workers have together.

`python -m tests.benchmarks.decoding_memory --out DIR` prints a table and writes it to the folder.
Linux only.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

from tests.benchmarks.photo import photo
from tests.benchmarks.report import Report
from vision_service.decoding.process import PROGRAM
from vision_service.preprocessor import Preprocessor, PreprocessorLimits
from vision_service.settings import Settings, resizing_thread_count

TILE_SIZE, MAX_TILE_COUNT = 448, 12
# Of a phone's photo of 108 megapixels: 4 x 4 times this.
PIECE_WIDTH, PIECE_HEIGHT = 3000, 2250
MIB = 2**20
COMPARED = """\
{count} different files of {width}x{height} pixels are handed in at once, with the vision service's
default limits and {worker_count} workers. Memory is what belongs to the workers alone (USS), all
together, looked at every 20 ms, less what they have before. The bound is `max_decode_byte_count`,
and the 128 MiB that each worker may keep. Answered: how many of them."""


def large_photo(format_: str, orientation: int = 1, **options: object) -> bytes:
    """Returns a photo of 108 megapixels as a file."""
    piece = np.asarray(Image.open(io.BytesIO(photo("BMP", PIECE_WIDTH, PIECE_HEIGHT))))
    exif, file = Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    Image.fromarray(np.tile(piece, (4, 4, 1))).save(file, format_, exif=exif, **options)
    return file.getvalue()


CASES: dict[str, Callable[[], bytes]] = {
    "JPEG": lambda: large_photo("JPEG", quality=90),
    "JPEG, to be turned": lambda: large_photo("JPEG", orientation=6, quality=90),
    "JPEG, progressive, 4:4:4": lambda: large_photo(
        "JPEG", quality=80, progressive=True, subsampling=0
    ),
    "PNG": lambda: large_photo("PNG", compress_level=1),
    "WebP": lambda: large_photo("WEBP", quality=80, method=0),
}


async def measure(
    worker_count: int, count: int, cases: Sequence[str], write: Callable[[Report], None]
) -> Report:
    """Measures each kind of file; what there is so far is written after each."""
    compared = COMPARED.format(
        count=count, width=4 * PIECE_WIDTH, height=4 * PIECE_HEIGHT, worker_count=worker_count
    )
    columns = ("file", "MB", "peak MiB", "bound MiB", "answered", "seconds")
    report = Report("Decoding: memory of large pictures", compared, columns)
    for case in cases:
        data = await asyncio.to_thread(CASES[case])
        await _measure_case(report, case, data, worker_count, count)
        write(report)
    return report


async def _measure_case(
    report: Report, case: str, data: bytes, worker_count: int, count: int
) -> None:
    limits = default_limits(worker_count)
    async with Preprocessor(TILE_SIZE, limits) as preprocessor:
        await asyncio.gather(
            *(preprocessor.tile(photo("PNG", 64, 64, seed), 1) for seed in range(4 * worker_count))
        )
        before, started = workers_byte_count(), time.perf_counter()
        # Other bytes behind the end, so that no two files are the same.
        images = [
            preprocessor.tile(data + bytes([index]), MAX_TILE_COUNT) for index in range(count)
        ]
        working = asyncio.gather(*images, return_exceptions=True)
        peak = 0
        while not working.done():
            peak = max(peak, await asyncio.to_thread(workers_byte_count))
            await asyncio.sleep(0.02)
        seconds = time.perf_counter() - started
    answered = [result for result in await working if not isinstance(result, BaseException)]
    bound = limits.max_decode_byte_count + worker_count * 128 * MIB
    cells = [
        f"{len(data) / 1e6:.1f}",
        f"{(peak - before) / MIB:,.0f}",
        f"{bound / MIB:,.0f}",
        f"{len(answered)} of {count}",
        f"{seconds:.1f}",
    ]
    report.add(case, cells, {"image": [result[1] for result in answered], "all": [seconds]})


def default_limits(worker_count: int) -> PreprocessorLimits:
    """Returns the vision service's limits when nothing is said."""
    defaults = {name: field.default for name, field in Settings.model_fields.items()}
    return PreprocessorLimits(
        worker_count=worker_count,
        max_image_count=defaults["max_preprocessing_image_count"],
        max_pixel_count=defaults["max_image_pixel_count"],
        max_decode_byte_count=defaults["max_decode_byte_count"],
        max_decode_seconds=defaults["max_decode_seconds"],
        thread_count=resizing_thread_count(),
    )


def workers_byte_count() -> int:
    """Returns the bytes that belong to this process's workers alone."""
    total = 0
    for child in psutil.Process().children():
        try:
            if PROGRAM in child.cmdline():
                total += child.memory_full_info().uss
        except psutil.Error:  # it has just ended
            continue
    return total


def main() -> None:
    """Measures, prints the table and writes it."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.decoding_memory")
    parser.add_argument("--out", type=Path, required=True, help="folder of the report")
    parser.add_argument("--workers", type=int, default=4, help="processes")
    parser.add_argument("--images", type=int, default=8, help="pictures at once")
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=CASES, help="files")
    options = parser.parse_args()
    load, _, _ = os.getloadavg()

    def write(report: Report) -> None:
        report.write(options.out, "decoding_memory", load)

    report = asyncio.run(measure(options.workers, options.images, options.cases, write))
    print(f"{report.title}\n\n{report.table()}", flush=True)


if __name__ == "__main__":
    main()
