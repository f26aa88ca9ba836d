"""How busy each GPU is: the share of the time in which anything computes there."""

from __future__ import annotations

import shutil
import subprocess
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.benchmarks.crossover.simulated_gpu import SimulatedGpus

QUERY = ("--query-gpu=index,utilization.gpu", "--format=csv,noheader,nounits", "-lms", "200")
SAMPLE_SECONDS = 0.005


class GpuUse:
    """Samples of each GPU's use, from 0 to 1."""

    def __init__(self) -> None:
        self._samples: dict[int, list[tuple[float, float]]] = defaultdict(list)

    def add(self, gpu: int, share: float) -> None:
        """Takes a sample of this moment."""
        self._samples[gpu].append((time.time(), share))

    def between(self, begin: float, end: float) -> list[float]:
        """Returns each GPU's mean use between two moments of `time.time`."""
        means = []
        for _, samples in sorted(self._samples.items()):
            shares = [share for moment, share in samples if begin <= moment <= end]
            means.append(round(sum(shares) / max(1, len(shares)), 3))
        return means


@contextmanager
def nvidia_use() -> Iterator[GpuUse]:
    """Yields what nvidia-smi says of the cards, as long as the context lasts; without it nothing.

    Its figure is the share of the last sixth of a second to a second in which a kernel ran.
    """
    use = GpuUse()
    if (program := shutil.which("nvidia-smi")) is None:
        yield use
        return
    process = subprocess.Popen(
        [program, *QUERY], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    reader = threading.Thread(target=_read, args=(process, use))
    reader.start()
    try:
        yield use
    finally:
        process.terminate()
        process.wait()
        reader.join()


def _read(process: subprocess.Popen[str], use: GpuUse) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        gpu, _, percent = line.partition(",")
        if gpu.strip().isdigit() and percent.strip().isdigit():
            use.add(int(gpu), int(percent) / 100)


@contextmanager
def simulated_use(file: Path, gpu_count: int) -> Iterator[GpuUse]:
    """Yields how often a simulated GPU was found computing, as long as the context lasts."""
    use, gpus, end = GpuUse(), SimulatedGpus(file), threading.Event()

    def sample() -> None:
        while not end.wait(SAMPLE_SECONDS):
            for gpu in range(gpu_count):
                use.add(gpu, float(gpus.is_busy(gpu)))

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield use
    finally:
        end.set()
        thread.join()
