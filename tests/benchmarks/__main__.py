"""`make bench`: runs the benchmarks, prints their tables and writes them to docs/benchmarks."""

from __future__ import annotations

import argparse
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

from tests.benchmarks import (
    cpu_threads,
    engine_cpu,
    first_token,
    page,
    preprocessing,
    preprocessing_threads,
    start,
    transfer,
)
from tests.benchmarks.report import Report

BENCHMARKS = {
    "preprocessing": preprocessing.run,
    "preprocessing_threads": preprocessing_threads.run,
    "transfer": transfer.run,
    "first_token": first_token.run,
    "engine_cpu": engine_cpu.run,
    "cpu_threads": cpu_threads.run,
    "start": start.run,
    "page": page.run,
}
FOLDER = Path(__file__).parents[2] / "docs" / "benchmarks"


def main() -> None:
    """Runs the benchmarks that the command line names, or all."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of: {', '.join(BENCHMARKS)}")
    parser.add_argument("--output", type=Path, default=FOLDER, help="folder of the reports")
    parser.add_argument(
        "--llama-server",
        type=_program,
        metavar="PATH",
        help="llama.cpp's llama-server, beside which engine_cpu measures the 1B as well",
    )
    options = parser.parse_args()
    if unknown := set(options.names) - set(BENCHMARKS):
        parser.error(f"there is no benchmark {', '.join(sorted(unknown))}")
    names = options.names or list(BENCHMARKS)
    if options.llama_server is not None and "engine_cpu" not in names:
        parser.error("--llama-server is of engine_cpu, which is not among the benchmarks named")
    benchmarks: dict[str, Callable[[Callable[[str], None]], Report]] = {
        **BENCHMARKS,
        "engine_cpu": partial(engine_cpu.run, llama_server=options.llama_server),
    }
    options.output.mkdir(parents=True, exist_ok=True)
    for name in names:
        load, _, _ = os.getloadavg()
        report = benchmarks[name](_progress)
        report.write(options.output, name, load)
        print(f"\n{report.title}\n\n{report.table()}\n", flush=True)


def _program(name: str) -> Path:
    path = shutil.which(name)
    if path is None:
        raise argparse.ArgumentTypeError(f"{name} is no program; give the path of a llama-server")
    return Path(path)


def _progress(step: str) -> None:
    print(f"measuring {step} ...", flush=True)


if __name__ == "__main__":
    main()
