"""The run: for each shape and arrangement its services are started, warmed, and asked."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from gateway.local.processes import StartError
from tests.benchmarks.crossover.arrangements import ARRANGEMENTS, Arrangement, Backend, Deployment
from tests.benchmarks.crossover.backends import EngineBackend, SimulatedBackend
from tests.benchmarks.crossover.clients import Answer, ClosedLoop
from tests.benchmarks.crossover.figures import Cell, Figures, figures
from tests.benchmarks.crossover.gpu_use import GpuUse, nvidia_use, simulated_use
from tests.benchmarks.crossover.results import ResultsFile
from tests.benchmarks.crossover.simulated_gpu import create_gpus
from tests.benchmarks.crossover.workload import Workload, photos
from tests.benchmarks.shapes import open_shape

Mode = Literal["cuda", "cpu", "simulated"]
# Not measured: a service's first requests compile and allocate.
WARM_ROUND_COUNT = 2
# Edges of the photos are so much shorter where decoding them is not what counts.
SHRINK = 8
TIME_OVER = "the time for the run was over"
# For cancelled requests to leave the services, before the next load.
SETTLE_SECONDS = 0.5


@dataclass(frozen=True)
class Grid:
    """What is asked of each arrangement.

    Attributes:
        picture_counts, tile_counts, client_counts: the cells are all combinations.
        token_count: tokens of an answer.
        round_count: answers of a cell, for each client, that count; one more begins it.
        cell_seconds: the longest time for a cell.
        seconds: the longest time for the whole run, starting left out of what is cut short.
    """

    picture_counts: Sequence[int] = (1, 2, 4, 8)
    tile_counts: Sequence[int] = (13, 1)
    client_counts: Sequence[int] = (32, 8)
    token_count: int = 128
    round_count: int = 3
    cell_seconds: float = 120.0
    seconds: float = 4 * 3600.0

    def cells(self, shape: str, arrangement: str, is_folded: bool) -> Iterator[Cell]:
        """Yields the cells of an arrangement, those that say most first."""
        for client_count in self.client_counts:
            for tile_count in self.tile_counts:
                for picture_count in self.picture_counts:
                    yield Cell(
                        shape, arrangement, is_folded, tile_count, picture_count, client_count
                    )


# Within eight minutes on one H200, which takes the arrangements folded.
QUICK = Grid(
    picture_counts=(1, 4, 8),
    client_counts=(16,),
    round_count=2,
    cell_seconds=25.0,
    seconds=440.0,
)


@dataclass(frozen=True)
class Plan:
    """A whole run.

    Attributes:
        mode: real engines on GPUs, tiny ones on the CPU, or engines that sleep.
        shapes: keys of shapes.FAMILIES.
        arrangements: keys of ARRANGEMENTS; empty: those that the GPUs tell apart.
        grid: the loads.
        gpu_count: GPUs to use.
        slowness: seconds here for a simulated second, by shape; 1 where nothing is simulated.
        checkpoints: keep and use again what is written here.
    """

    mode: Mode
    shapes: Sequence[str]
    arrangements: Sequence[str]
    grid: Grid
    gpu_count: int
    slowness: Mapping[str, float]
    checkpoints: Path | None = None


class Bench:
    """Runs a plan and writes what it finds."""

    def __init__(self, plan: Plan, results: ResultsFile) -> None:
        shrink = 1 if plan.mode == "cuda" else SHRINK
        self._plan = plan
        self._results = results
        self._photos = {count: photos(count, shrink=shrink) for count in plan.grid.tile_counts}
        self._end = time.monotonic() + plan.grid.seconds
        self._rest_count = len(plan.shapes)

    def run(self) -> None:
        """Measures all shapes, each within its share of the time that is left."""
        for shape in self._plan.shapes:
            with (
                self._backend(shape) as backend,
                self._sampling(backend) as use,
                tempfile.TemporaryDirectory() as folder,
            ):
                self._run_shape(shape, backend, use, Path(folder))
            self._rest_count -= 1

    def _run_shape(self, shape: str, backend: Backend, use: GpuUse, folder: Path) -> None:
        names = self._plan.arrangements or arrangements_for(self._plan.gpu_count)
        shape_end = self._share_end(self._end, self._rest_count)
        for index, name in enumerate(names):
            wanted = ARRANGEMENTS[name]
            arrangement = wanted.folded(self._plan.gpu_count)
            cells = list(self._plan.grid.cells(shape, name, arrangement != wanted))
            end = self._share_end(shape_end, len(names) - index)
            if end <= time.monotonic():
                self._skip(cells, TIME_OVER)
                continue
            try:
                self._run_arrangement(arrangement, backend, use, folder / name, cells, end)
            except StartError as error:
                print(f"{shape} {name}: {error}", flush=True)
                self._skip(cells, "its services did not start")

    def _skip(self, cells: Sequence[Cell], why: str) -> None:
        for cell in cells:
            self._results.skip(cell, why)

    @staticmethod
    def _share_end(end: float, count: int) -> float:
        now = time.monotonic()
        return now + (end - now) / count

    def _run_arrangement(
        self,
        arrangement: Arrangement,
        backend: Backend,
        use: GpuUse,
        folder: Path,
        cells: Sequence[Cell],
        end: float,
    ) -> None:
        deployment, started = Deployment(arrangement, backend, folder), time.monotonic()
        name = f"{cells[0].shape} {cells[0].arrangement}"
        print(f"{name}: starting {len(deployment.services)} processes ...", flush=True)
        with deployment.running():
            print(f"{name}: they serve after {time.monotonic() - started:.0f} s", flush=True)
            self._warm(deployment, cells)
            print(f"{name}: warm after {time.monotonic() - started:.0f} s", flush=True)
            for cell in cells:
                self._measure(deployment, cell, use, end)

    def _warm(self, deployment: Deployment, cells: Sequence[Cell]) -> None:
        for tile_count in self._plan.grid.tile_counts:
            cell = replace(cells[0], tile_count=tile_count, picture_count=1)
            self._ask(deployment, cell, "warm", WARM_ROUND_COUNT, self._plan.grid.cell_seconds)

    def _measure(self, deployment: Deployment, cell: Cell, use: GpuUse, end: float) -> None:
        seconds = min(self._plan.grid.cell_seconds, end - time.monotonic())
        if seconds <= 0:
            self._skip([cell], TIME_OVER)
            return
        answers = self._ask(deployment, cell, "cell", 1 + self._plan.grid.round_count, seconds)
        logs = [service.log for service in (*deployment.visions, *deployment.llms)]
        found = figures(answers, cell.client_count, logs, use, self._plan.slowness[cell.shape])
        if found is None:
            why = next((answer.error for answer in answers if answer.error), "")
            self._skip([cell], why or f"{len(answers)} answers within {seconds:.0f} s are too few")
        else:
            self._results.add(cell, found)
        print(progress_line(cell, found), flush=True)

    def _ask(
        self, deployment: Deployment, cell: Cell, purpose: str, round_count: int, seconds: float
    ) -> list[Answer]:
        seed = f"{purpose} {cell.tile_count} {cell.picture_count}"  # arrangements get the same
        loop = ClosedLoop(
            deployment.urls,
            Workload(
                deployment.model,
                self._photos[cell.tile_count],
                cell.picture_count,
                self._plan.grid.token_count,
                f"{seed} {cell.client_count}",
            ),
            cell.client_count,
            round_count * cell.client_count,
            seconds,
        )
        answers = asyncio.run(loop.run())
        time.sleep(SETTLE_SECONDS)
        return answers

    @contextmanager
    def _backend(self, shape: str) -> Iterator[Backend]:
        plan = self._plan
        device = "cuda" if plan.mode == "cuda" else "cpu"
        with open_shape(plan.checkpoints, shape, device, plan.mode != "cuda") as checkpoint:
            if plan.mode != "simulated":
                yield EngineBackend(checkpoint, plan.mode)
                return
            with tempfile.TemporaryDirectory() as folder:
                gpus = create_gpus(Path(folder) / "gpus")
                yield SimulatedBackend(checkpoint, shape, plan.slowness[shape], gpus)

    def _sampling(self, backend: Backend) -> AbstractContextManager[GpuUse]:
        if isinstance(backend, SimulatedBackend):
            return simulated_use(backend.gpus, self._plan.gpu_count)
        return nvidia_use()


def arrangements_for(gpu_count: int) -> Sequence[str]:
    """Returns the arrangements that so many GPUs tell apart: on one, pooled is what stacks is."""
    return list(ARRANGEMENTS) if gpu_count > 1 else ["split", "stacks"]


def progress_line(cell: Cell, found: Figures | None) -> str:
    """Returns what is printed when a cell is done."""
    where = (
        f"{cell.shape} {cell.arrangement}: {cell.picture_count} x {cell.tile_count} tiles,"
        f" {cell.client_count} clients"
    )
    if found is None:
        return f"{where}: no figures"
    return (
        f"{where}: {found.requests_per_second:.2f} requests/s, {found.goodput:.0%} good,"
        f" {found.error_count} failed"
    )
