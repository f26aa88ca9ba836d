"""`make bench`: runs the benchmarks, prints their tables and writes them to docs/benchmarks.

With --baseline TREE those of another source tree, in turn with these; before_and_now.md compares.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from tests.benchmarks import (
    access,
    cpu_threads,
    engine_cpu,
    engine_process,
    first_token,
    keys,
    page,
    preprocessing,
    preprocessing_threads,
    start,
    streams,
    tracing,
    transfer,
    transfer_tls,
)
from tests.benchmarks.comparison import compare
from tests.benchmarks.report import Report, ReportBook

BENCHMARKS = {
    "preprocessing": preprocessing.run,
    "preprocessing_threads": preprocessing_threads.run,
    "transfer": transfer.run,
    "transfer_tls": transfer_tls.run,
    "first_token": first_token.run,
    "engine_cpu": engine_cpu.run,
    "cpu_threads": cpu_threads.run,
    "start": start.run,
    "page": page.run,
    "keys": keys.run,
    "access": access.run,
    "streams": streams.run,
    "engine_process": engine_process.run,
    "tracing": tracing.run,
}
PROGRAM = "python -m tests.benchmarks"
HERE = Path(__file__).parents[2]
FOLDER = HERE / "docs" / "benchmarks"


def main() -> None:
    """Runs the benchmarks that the command line names, or all."""
    parser = argparse.ArgumentParser(prog=PROGRAM, description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of: {', '.join(BENCHMARKS)}")
    parser.add_argument("--output", type=Path, default=FOLDER, help="folder of the reports")
    parser.add_argument(
        "--llama-server",
        type=_program,
        metavar="PATH",
        help="llama.cpp's llama-server, beside which engine_cpu measures the 1B as well",
    )
    parser.add_argument(
        "--baseline", type=Path, metavar="TREE", help="another source tree, in turn with this one"
    )
    parser.add_argument("--rounds", type=int, default=1, help="turns of each, with --baseline")
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
        if options.baseline is None:
            report = benchmarks[name](_progress)
            report.write(options.output, name, load)
        else:
            report = _compare(name, options)
            book = ReportBook(options.output, "before_and_now", "Two source trees in turn")
            book.put(name, report, f"{PROGRAM} {shlex.join(sys.argv[1:])}", load)
        print(f"\n{report.title}\n\n{report.table()}\n", flush=True)


def _compare(name: str, options: argparse.Namespace) -> Report:
    has_server = options.llama_server is not None and name == "engine_cpu"
    words = ["--llama-server", str(options.llama_server)] if has_server else []
    return compare(name, (options.baseline, HERE), words, options.output, options.rounds)


def _program(name: str) -> Path:
    path = shutil.which(name)
    if path is None:
        raise argparse.ArgumentTypeError(f"{name} is no program; give the path of a llama-server")
    return Path(path)


def _progress(step: str) -> None:
    print(f"measuring {step} ...", flush=True)


if __name__ == "__main__":
    main()
