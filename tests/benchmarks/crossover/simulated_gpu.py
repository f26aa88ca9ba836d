"""A GPU that several processes share, simulated: each computes at its share of the speed."""

from __future__ import annotations

import mmap
import time
from collections.abc import Generator
from pathlib import Path
from typing import Literal

Work = Literal["vision", "prefill", "decode"]
CODES: dict[Work, int] = {"vision": 1, "prefill": 2, "decode": 3}
# Two processes take turns on a GPU. What each does a second, over what it does alone, added up: as
# measured on an H200 for the vision tower beside an LLM.
COMBINED_SPEEDS = {
    frozenset((CODES["vision"], CODES["prefill"])): 1.04,
    frozenset((CODES["vision"], CODES["decode"])): 0.90,
}
SLICE_SECONDS = 0.002
# Of each GPU; processes of one run after the other do not share one.
SLOT_COUNT = 64
GPU_COUNT = 8


def create_gpus(file: Path) -> Path:
    """Writes a file of idle GPUs, which processes share by opening it; returns it."""
    file.write_bytes(bytes(GPU_COUNT * SLOT_COUNT))
    return file


class SimulatedGpus:
    """The GPUs of a file: a byte a process says what that process computes now, 0 for nothing.

    Attributes:
        overshoot_seconds: how much later the latest work was done than it should have been.
    """

    def __init__(self, file: Path) -> None:
        self.overshoot_seconds = 0.0
        with file.open("r+b") as opened:
            self._bytes = mmap.mmap(opened.fileno(), 0)

    def is_busy(self, gpu: int) -> bool:
        """Whether anything is computed there at this moment."""
        return bool(self._working(gpu))

    def compute(
        self, gpu: int, slot: int, work: Work, seconds: float
    ) -> Generator[float, None, None]:
        """Yields how long to sleep, again and again, until the work is done.

        Args:
            gpu: where.
            slot: the process's own, below SLOT_COUNT.
            work: what kind.
            seconds: what it takes when nothing else runs there.

        Raises:
            ValueError: there is no such GPU, or no such slot.
        """
        if not (0 <= gpu < GPU_COUNT and 0 <= slot < SLOT_COUNT):
            raise ValueError(f"there is no slot {slot} of GPU {gpu}")
        place = gpu * SLOT_COUNT + slot
        self._bytes[place] = CODES[work]
        try:
            while seconds > 0:
                speed = self._speed(gpu)
                started = time.perf_counter()
                yield min(SLICE_SECONDS, seconds / speed)
                seconds -= (time.perf_counter() - started) * speed
            self.overshoot_seconds = -seconds
        finally:
            self._bytes[place] = 0

    def _speed(self, gpu: int) -> float:
        """Returns the speed of each process there, 1 for one alone."""
        working = self._working(gpu)
        return COMBINED_SPEEDS.get(frozenset(working), 1.0) / max(1, len(working))

    def _working(self, gpu: int) -> list[int]:
        slots = self._bytes[gpu * SLOT_COUNT : (gpu + 1) * SLOT_COUNT]
        return [code for code in slots if code]
