"""A language model and a vision tower beside each other on one device, in one process."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from tests.benchmarks.crowd import Crowd, crowd
from tests.benchmarks.engine_parts import Subject
from tests.benchmarks.report import Report
from tests.benchmarks.timeline import ask
from tests.benchmarks.vision_cuda import BATCHES_IN_FLIGHT, Bench, our_model, random_model
from vision_service.engines.base import VisionEngine
from vision_service.engines.torch.engine import TorchEngine

COLUMNS = ("figure", "alone", "beside the other", "share")
COMPARED = """\
Both engines in one process, each with a thread of its own: the vision tower encodes batches of so
many tiles without a pause, while the language model generates for so many sequences, or reads one
prompt after another. "Share" is the rate beside the other over the rate alone; "combined" is the
sum of both shares: 1 is what taking turns gives."""


@dataclass
class Tower:
    """A vision engine and a thread that has it encode without a pause.

    Attributes:
        ends: when each batch was there, of time.perf_counter.
    """

    engine: VisionEngine
    tiles: torch.Tensor
    ends: list[float] = field(default_factory=list)

    @contextmanager
    def encoding(self) -> Iterator[None]:
        """Encodes for as long as the block lasts."""
        stop = threading.Event()
        thread = threading.Thread(target=self._encode, args=(stop,))
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def _encode(self, stop: threading.Event) -> None:
        batches = [self.engine.submit([self.tiles]) for _ in range(BATCHES_IN_FLIGHT)]
        while not stop.is_set():
            batches.pop(0).wait()
            self.ends.append(time.perf_counter())
            batches.append(self.engine.submit([self.tiles]))
        for batch in batches:
            batch.wait()

    def rate(self, begin: float) -> float:
        """Returns the tiles a second since a moment.

        Raises:
            ValueError: there were no two batches.
        """
        ends = [moment for moment in self.ends if moment >= begin]
        if len(ends) < 2:
            raise ValueError(f"the tower has encoded {len(ends)} batches")
        return (len(ends) - 1) * len(self.tiles) / (ends[-1] - ends[0])


async def beside(subject: Subject) -> list[Report]:
    """Measures both engines alone and together."""
    tower = make_tower(subject.tower)
    report = Report("and a vision tower beside it, in one process", COMPARED, COLUMNS)
    seconds = subject.sizes.window_seconds
    with tower.encoding():
        begin = time.perf_counter()
        await asyncio.sleep(seconds)
        tiles_alone = tower.rate(begin)
    sizes = subject.sizes
    batch_size = sizes.batch_sizes[-1]
    prompts = [subject.prompts.text(sizes.prompt_token_count) for _ in range(batch_size)]
    async with crowd(subject.engine, prompts, sizes.max_tokens) as running:
        steps_alone = await _step_rate(running, seconds)
        with tower.encoding():
            begin = time.perf_counter()
            steps = await _step_rate(running, seconds)
            tiles = tower.rate(begin)
    name = f"steps/s of {batch_size} sequences"
    _add(report, name, (steps_alone, steps), (tiles_alone, tiles))
    prompts_alone = await _prompt_rate(subject, seconds)
    with tower.encoding():
        begin = time.perf_counter()
        read = await _prompt_rate(subject, seconds)
        tiles = tower.rate(begin)
    name = f"prompts/s of {sizes.prompt_token_count} tokens"
    _add(report, name, (prompts_alone, read), (tiles_alone, tiles))
    return [report]


def make_tower(bench: Bench) -> Tower:
    """Returns the tower with random weights, and a batch for it."""
    tile_count = bench.tile_counts[1]
    model = random_model(bench.config, bench.device)
    engine: VisionEngine
    if bench.is_cuda:
        from vision_service.engines.torch.cuda_engine import CudaEngine

        engine = CudaEngine(
            our_model(bench, model),
            bench.config,
            bytes(32),
            dtype=bench.dtype,
            max_batch_tile_count=tile_count,
        )
    else:
        engine = TorchEngine(model, bench.config, bytes(32))
    return Tower(engine, bench.tiles(tile_count))


async def _step_rate(running: Crowd, seconds: float) -> float:
    steps = await running.watch(seconds)
    return len(steps) / sum(steps)


async def _prompt_rate(subject: Subject, seconds: float) -> float:
    """Returns how many prompts a second are read, one after another; the first is not counted."""
    token_count = subject.sizes.prompt_token_count
    await ask(subject.engine, subject.prompts.text(token_count), 1)
    begin, count = time.perf_counter(), 0
    while time.perf_counter() < begin + seconds:
        await ask(subject.engine, subject.prompts.text(token_count), 1)
        count += 1
    return count / (time.perf_counter() - begin)


def _add(
    report: Report, name: str, rates: tuple[float, float], tile_rates: tuple[float, float]
) -> None:
    shares = [beside / alone for alone, beside in (rates, tile_rates)]
    for figure, (alone, together), share in zip(
        (name, f"tiles/s beside {name.split()[0]}"), (rates, tile_rates), shares, strict=True
    ):
        report.add(figure, [f"{alone:.1f}", f"{together:.1f}", f"{share:.2f}"], {})
    report.add(f"combined, {name.split()[0]}", ["1", "-", f"{sum(shares):.2f}"], {})
