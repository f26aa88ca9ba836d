"""A language model and a vision tower beside each other on one device, in one process."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

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


@dataclass(frozen=True)
class Rates:
    """What a language model does a second: alone, beside a tower, and the tower's tiles then."""

    alone: float
    together: float
    tiles: float


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
    tower, sizes = make_tower(subject.tower), subject.sizes
    with tower.encoding():
        begin = time.perf_counter()
        await asyncio.sleep(sizes.window_seconds)
        tiles_alone = tower.rate(begin)
    report = Report("and a vision tower beside it, in one process", COMPARED, COLUMNS)
    prompts = [subject.prompts.text(sizes.prompt_token_count) for _ in range(sizes.batch_sizes[-1])]
    async with crowd(subject.engine, prompts, sizes.max_tokens) as running:
        decode = await _rates(partial(_step_rate, running, sizes.window_seconds), tower)
    _add(report, f"steps/s of {len(prompts)} sequences", decode, tiles_alone)
    prefill = await _rates(partial(_prompt_rate, subject), tower)
    _add(report, f"prompts/s of {sizes.prompt_token_count} tokens", prefill, tiles_alone)
    return [report]


async def _rates(measure: Callable[[], Awaitable[float]], tower: Tower) -> Rates:
    alone = await measure()
    with tower.encoding():
        begin = time.perf_counter()
        together = await measure()
        return Rates(alone, together, tower.rate(begin))


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


async def _prompt_rate(subject: Subject) -> float:
    """Returns how many prompts a second are read, one after another; the first is not counted."""
    token_count = subject.sizes.prompt_token_count
    await ask(subject.engine, subject.prompts.text(token_count), 1)
    begin, count = time.perf_counter(), 0
    while time.perf_counter() < begin + subject.sizes.window_seconds:
        await ask(subject.engine, subject.prompts.text(token_count), 1)
        count += 1
    return count / (time.perf_counter() - begin)


def _add(report: Report, name: str, rates: Rates, tiles_alone: float) -> None:
    """Adds a row of the language model, one of the tower beside it, and the sum of their shares."""
    unit, _, _ = name.partition(" ")
    shares = []
    for figure, alone, together in (
        (name, rates.alone, rates.together),
        (f"tiles/s beside {unit}", tiles_alone, rates.tiles),
    ):
        shares.append(together / alone)
        report.add(figure, [f"{alone:.1f}", f"{together:.1f}", f"{shares[-1]:.2f}"], {})
    report.add(f"combined, {unit}", ["1", "-", f"{sum(shares):.2f}"], {})
