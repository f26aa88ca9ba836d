"""`make bench`: runs the benchmarks, prints their tables and writes them to docs/benchmarks."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from tests.benchmarks import engine_cpu, first_token, page, preprocessing, start, transfer

BENCHMARKS = {
    "preprocessing": preprocessing.run,
    "transfer": transfer.run,
    "first_token": first_token.run,
    "engine_cpu": engine_cpu.run,
    "start": start.run,
    "page": page.run,
}
FOLDER = Path(__file__).parents[2] / "docs" / "benchmarks"


def main() -> None:
    """Runs the benchmarks that the command line names, or all."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of: {', '.join(BENCHMARKS)}")
    parser.add_argument("--output", type=Path, default=FOLDER, help="folder of the reports")
    options = parser.parse_args()
    if unknown := set(options.names) - set(BENCHMARKS):
        parser.error(f"there is no benchmark {', '.join(sorted(unknown))}")
    options.output.mkdir(parents=True, exist_ok=True)
    for name in options.names or BENCHMARKS:
        load, _, _ = os.getloadavg()
        report = BENCHMARKS[name](_progress)
        report.write(options.output, name, load)
        print(f"\n{report.title}\n\n{report.table()}\n", flush=True)


def _progress(step: str) -> None:
    print(f"measuring {step} ...", flush=True)


if __name__ == "__main__":
    main()
