"""Damaged pictures of all kinds: each is answered or refused, by workers that stay alive."""

from __future__ import annotations

import asyncio
import re
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import structlog

from protos.errors import ImageTooLargeError, InvalidImageError, ServiceError
from tests.mutated_pictures import mutated, originals
from tests.unit.vision_service.workers import worker_pids
from vision_service.preprocessor import Preprocessor, PreprocessorLimits

LIMITS = PreprocessorLimits(
    worker_count=2,
    max_image_count=16,
    max_pixel_count=4_000_000,
    max_decode_byte_count=2**28,
    max_decode_seconds=4.0,
)
IN_FLIGHT_COUNT = 4
MAX_SECONDS = 5.0
# A worker's own, what it may keep (KEPT_BYTE_COUNT), and what the largest of these pictures takes.
MAX_RESIDENT_BYTE_COUNT = (60 + 128 + 100) * 2**20
# What Python and Pillow say to programmers.
INSIDE_WORDS = re.compile(
    r"unpack|<_io|object|NoneType|identify|out of range|Errno|tuple|argument|PIL|None|\\x| at 0x"
)


@dataclass
class Findings:
    """What came of the pictures.

    Attributes:
        outcomes: how many ended in which way.
        faults: what must not be, with the picture's number.
        slowest_seconds: of a picture, in its worker's hands or waiting for it.
    """

    outcomes: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    slowest_seconds: float = 0.0

    def add(self, number: int, name: str, result: str, error: ServiceError | None) -> None:
        """Counts a picture."""
        self.outcomes[result] += 1
        if error is not None and (
            not isinstance(error, InvalidImageError | ImageTooLargeError)
            or error.field != "image"
            or INSIDE_WORDS.search(error.message)
        ):
            self.faults.append(f"{number} {name}: {type(error).__name__} {error.message}")


async def findings(numbers: range) -> Findings:
    """Sends the pictures of these numbers through workers, a few at a time."""
    found, left = Findings(), iter(numbers)

    async def client(preprocessor: Preprocessor) -> None:
        for number in left:
            name, data = mutated(number)
            started = time.monotonic()
            try:
                await preprocessor.tile(data, 2)
                found.add(number, name, "answered", None)
            except ServiceError as error:
                found.add(number, name, error.reason, error)
            except Exception as error:  # noqa: BLE001 - a bug, with the number that shows it
                found.faults.append(f"{number} {name}: {error!r}")
            found.slowest_seconds = max(found.slowest_seconds, time.monotonic() - started)

    with structlog.testing.capture_logs() as logs:
        async with Preprocessor(28, LIMITS) as preprocessor:
            await asyncio.gather(*(client(preprocessor) for _ in range(IN_FLIGHT_COUNT)))
            peaks = [peak_byte_count(pid) for pid in worker_pids()]
    found.faults += [str(event) for event in logs if event["event"] == "worker_lost"]
    found.faults += [f"{peak} bytes resident" for peak in peaks if peak > MAX_RESIDENT_BYTE_COUNT]
    return found


def peak_byte_count(pid: int) -> int:
    """Returns the most memory that a process ever had resident; 0 where the system keeps none."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


async def test_the_whole_files_are_answered() -> None:
    async with Preprocessor(28, LIMITS) as preprocessor:
        for name, data in originals().items():
            tiled, _ = await preprocessor.tile(data, 2)
            assert min(tiled.width, tiled.height) >= 36, name


async def test_two_thousand_damaged_pictures() -> None:
    found = await findings(range(2000))
    assert found.faults == []
    assert found.outcomes["answered"] > 200
    assert found.outcomes["INVALID_IMAGE"] > 200
    assert found.slowest_seconds < MAX_SECONDS


@pytest.mark.slow
@pytest.mark.timeout(1200)
async def test_twenty_thousand_damaged_pictures() -> None:
    found = await findings(range(2000, 22_000))
    assert found.faults == []
    assert found.slowest_seconds < MAX_SECONDS
