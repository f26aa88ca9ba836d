"""The whole product under load: three processes, clients over HTTP with a new picture each time.

`python -m tests.benchmarks.serving --out DIR [--shape 8B] [--baseline TREE] [--turns]`

Services take options from their variables, e.g. INTERNVL_LLM_TORCH_MAX_STEP_TOKEN_COUNT=2048.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shlex
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from protos.process.settings import GIB
from tests.benchmarks.crossover.clients import Answer
from tests.benchmarks.crossover.workload import TILE_COUNTS, Photo, Workload, photos
from tests.benchmarks.report import Report, ReportBook
from tests.benchmarks.serving.chats import KINDS, Chats, add_chats, chats_report, run_chats
from tests.benchmarks.serving.load import Load, run_load, run_turns
from tests.benchmarks.serving.product import Product, serving
from tests.benchmarks.serving.table import (
    Row,
    add_load,
    add_turns,
    check_tiles,
    load_report,
    row_stages,
    stages_report,
    turns_report,
)
from tests.benchmarks.shapes import FAMILIES, open_shape

TITLE = "The whole product under load, random weights"
HERE = Path(__file__).parents[3]
NOW, BEFORE = "now", "before"
WORD_COUNTS = (3, 280)
# More than that and the clients take the services' cores.
CORES_A_CLIENT_PROCESS, MAX_CLIENT_PROCESS_COUNT = 4, 8
WARM_CLIENT_COUNT = 32
TURN_TOKEN_COUNT = 16
TINY_SHRINK = 8
# Of the photos that chats are about, before their cap.
CHAT_TILE_COUNT = 13
KV_CACHE_BYTE_COUNT, TINY_KV_CACHE_BYTE_COUNT = 24 * GIB, GIB // 4


@dataclass(frozen=True)
class Grid:
    """What is asked of each product.

    Attributes:
        tile_counts, client_counts: the loads are all combinations.
        token_count: tokens of an answer.
        seconds, warm_seconds: how long requests are sent, of each load and before the first.
        turn_count: conversations of two turns; 0 for none.
    chats: longer ones, of each kind.
    """

    tile_counts: Sequence[int]
    client_counts: Sequence[int]
    token_count: int
    seconds: float
    warm_seconds: float
    turn_count: int
    chats: Sequence[Chats] = ()


@dataclass
class Bench:
    """One shape's measurements.

    Attributes:
        shape: its name.
        products: what takes turns, load by load.
        photos: by the number of tiles that they become.
        book: where the results go, after each load.
        load_before: how many processes wanted a core in the minute before it began.
        rows: the loads so far.
    """

    shape: str
    products: Sequence[Product]
    grid: Grid
    photos: Mapping[int, Sequence[Photo]]
    clients: Executor
    client_process_count: int
    book: ReportBook
    load_before: float
    rows: list[Row] = field(default_factory=list)

    def run(self) -> None:
        """Warms all products, and measures load by load.

        Raises:
            ValueError: requests are not in the logs, or a picture has other tiles than was meant.
        """
        for tile_count in self.grid.tile_counts:
            for product in self.products:
                self._warm(product, tile_count)
        for tile_count in self.grid.tile_counts:
            for client_count in self.grid.client_counts:
                for product in self.products:
                    self._measure(product, tile_count, client_count)
        if self.grid.turn_count:
            self._measure_turns()
        if self.grid.chats:
            self._measure_chats()
        for product in self.products:
            for tile_count in self.grid.tile_counts:
                _print(self.shape, stages_report(self.rows, product.name, tile_count))
        _print(self.shape, load_report(self.rows))

    @property
    def broken_count(self) -> int:
        """Requests that failed otherwise than by a refusal for load."""
        answers = [answer for row in self.rows for answer in row.answers]
        return sum(bool(answer.error) and answer.status != 429 for answer in answers)

    def _warm(self, product: Product, tile_count: int) -> None:
        started = time.monotonic()
        client_count = min(WARM_CLIENT_COUNT, max(self.grid.client_counts))
        workload = self._workload(product, tile_count, "warm")
        self._ask(product, Load(workload, client_count, self.grid.warm_seconds))
        seconds = time.monotonic() - started
        print(f"{self.shape} {product.name}: warm, {tile_count} tiles: {seconds:.1f} s", flush=True)

    def _measure(self, product: Product, tile_count: int, client_count: int) -> None:
        workload = self._workload(product, tile_count, f"{tile_count} {client_count}")
        answers = self._ask(product, Load(workload, client_count, self.grid.seconds))
        whole = [answer for answer in answers if not answer.error]
        lines = product.lines({answer.request_id for answer in whole})
        check_tiles(lines, tile_count)
        row = Row(product.name, tile_count, client_count, answers, row_stages(whole, lines))
        self.rows.append(row)
        self._write(row)

    def _write(self, row: Row) -> None:
        """Prints the latest row, and writes the tables that it is in."""
        alone = Report("", "", load_report([]).columns)
        add_load(alone, row)
        (cells,) = alone.rows
        words = [f"{name} {cell}" for name, cell in zip(alone.columns[1:], cells[1:], strict=True)]
        print(f"{self.shape} {cells[0]}: {'; '.join(words)}", flush=True)
        if error := next((one.error for one in row.answers if one.error), ""):
            print(f"  the first failure: {error}", flush=True)
        self._put(load_report(self.rows))
        self._put(stages_report(self.rows, row.product, row.tile_count))

    def _measure_turns(self) -> None:
        report = turns_report()
        for tile_count in self.grid.tile_counts:
            for product in self.products:
                workload = self._workload(product, tile_count, "turns", TURN_TOKEN_COUNT)
                conversing = self.clients.submit(
                    run_turns, product.url, workload, 1 + self.grid.turn_count
                )
                case = f"{tile_count} tiles, {self.grid.turn_count}, {product.name}"
                add_turns(report, case, conversing.result()[1:])
                self._put(report)
        _print(self.shape, report)

    def _measure_chats(self) -> None:
        report = chats_report()
        for chats in self.grid.chats:
            for product in self.products:
                workload = self._workload(product, CHAT_TILE_COUNT, "chats", TURN_TOKEN_COUNT)
                turns = self.clients.submit(run_chats, product.url, workload, chats).result()
                add_chats(report, f"{chats}, {product.name}", turns)
                self._put(report)
        _print(self.shape, report)

    def _ask(self, product: Product, load: Load) -> list[Answer]:
        return run_load(self.clients, self.client_process_count, product.url, load)

    def _workload(
        self, product: Product, tile_count: int, seed: str, token_count: int = 0
    ) -> Workload:
        return Workload(
            product.model,
            self.photos[tile_count],
            picture_count=1,
            token_count=token_count or self.grid.token_count,
            seed=seed,  # all products are asked the same
            word_counts=WORD_COUNTS,
        )

    def _put(self, report: Report) -> None:
        command = shlex.join(["python", "-m", "tests.benchmarks.serving", *sys.argv[1:]])
        self.book.put(f"{self.shape} {report.title}", report, command, self.load_before)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures the shapes that the command line names; returns how many requests were broken."""
    options = _options(arguments)
    book = ReportBook(options.out, "serving", TITLE)
    grid = Grid(
        tile_counts=options.tiles,
        client_counts=options.clients,
        token_count=options.tokens,
        seconds=options.seconds,
        warm_seconds=options.warm_seconds,
        turn_count=options.turns,
        chats=[
            Chats(kind, options.chats, options.chat_turns, options.chat_pictures)
            for kind in options.chat_kinds
            if options.chats
        ],
    )
    shrink = TINY_SHRINK if options.tiny else 1
    tile_counts = {*grid.tile_counts, *([CHAT_TILE_COUNT] if grid.chats else [])}
    pictures = {count: photos(count, shrink=shrink) for count in tile_counts}
    return sum(_measure_shape(shape, options, grid, pictures, book) for shape in options.shape)


def _measure_shape(
    shape: str,
    options: argparse.Namespace,
    grid: Grid,
    pictures: Mapping[int, Sequence[Photo]],
    book: ReportBook,
) -> int:
    """Returns how many requests were broken."""
    load_before, _, _ = os.getloadavg()
    process_count = client_process_count(os.cpu_count() or 1)
    spawn = multiprocessing.get_context("spawn")
    with (
        open_shape(options.checkpoints, shape, options.device, options.tiny) as checkpoint,
        ProcessPoolExecutor(process_count, mp_context=spawn) as clients,
        ExitStack() as exits,
    ):
        products = [
            exits.enter_context(_started(shape, name, tree, checkpoint, options))
            for name, tree in ((BEFORE, options.baseline), (NOW, HERE))
            if tree is not None
        ]
        bench = Bench(shape, products, grid, pictures, clients, process_count, book, load_before)
        bench.run()
    return bench.broken_count


@contextmanager
def _started(
    shape: str, name: str, tree: Path, checkpoint: Path, options: argparse.Namespace
) -> Iterator[Product]:
    started = time.monotonic()
    variables = _variables(options.device, is_tiny=options.tiny)
    with serving(name, tree, checkpoint, variables) as product:
        print(f"{shape} {name}: serves after {time.monotonic() - started:.1f} s", flush=True)
        yield product


def client_process_count(core_count: int) -> int:
    """Returns how many client processes a machine of so many cores has."""
    return max(1, min(MAX_CLIENT_PROCESS_COUNT, core_count // CORES_A_CLIENT_PROCESS))


def _variables(device: str, *, is_tiny: bool) -> dict[str, str]:
    """Returns the options of the services."""
    byte_count = TINY_KV_CACHE_BYTE_COUNT if is_tiny else KV_CACHE_BYTE_COUNT
    return {
        "INTERNVL_VISION_TORCH_DEVICE": device,
        "INTERNVL_LLM_TORCH_DEVICE": device,
        "INTERNVL_LLM_KV_CACHE_BYTE_COUNT": str(byte_count),
    }


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.serving")
    parser.add_argument("--out", type=Path, required=True, help="folder of the reports")
    parser.add_argument("--shape", nargs="+", choices=FAMILIES, default=["8B"])
    parser.add_argument("--clients", nargs="+", type=int, default=[1, 8, 32, 64, 128])
    parser.add_argument("--tiles", nargs="+", type=int, choices=TILE_COUNTS, default=[13, 1])
    parser.add_argument("--tokens", type=int, default=128, help="of each answer")
    parser.add_argument("--seconds", type=float, default=12.0, help="requests are sent, each load")
    parser.add_argument(
        "--warm-seconds", type=float, default=6.0, help="the same, before the first"
    )
    parser.add_argument(
        "--turns",
        nargs="?",
        type=int,
        default=0,
        const=20,
        help="so many conversations of two turns, too",
    )
    parser.add_argument("--chats", type=int, default=0, help="users of longer conversations, too")
    parser.add_argument("--chat-turns", type=int, default=8)
    parser.add_argument("--chat-pictures", type=int, default=5, help="most in one prompt")
    parser.add_argument("--chat-kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument(
        "--baseline", type=Path, metavar="TREE", help="another source tree, load by load in turn"
    )
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--tiny", action="store_true", help="tiny shapes, to try this program")
    parser.add_argument("--checkpoints", type=Path, help="keep and use again what is written here")
    return parser.parse_args(arguments)


def _print(shape: str, report: Report) -> None:
    print(f"\n{shape} {report.title}\n\n{report.table()}\n", flush=True)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the services end, too
    sys.exit(main())
