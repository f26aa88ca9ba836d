"""Many replicas: simulated, and as real processes over engines that sleep.

`python -m tests.benchmarks.replicas [--quick] [--slowness N] [--output DIR] [PART ...]`
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tests.benchmarks.crossover.arrangements import Deployment
from tests.benchmarks.replicas import comparison, encoding, misses
from tests.benchmarks.replicas.curves import draw, simulate, simulated_report
from tests.benchmarks.replicas.stack import running_stack
from tests.benchmarks.report import Report, ReportBook

FOLDER = Path(__file__).parents[3] / "docs" / "benchmarks"
BOOK, TITLE = "replicas", "Many replicas: round robin, ring hash, and a bound of load"
# One simulated second takes so many: this machine's own work stays small beside what is simulated.
SLOWNESS = 10.0


def reuse(deployment: Deployment, slowness: float, quick: bool) -> Report:
    """Requests/s when pictures come again."""
    size = comparison.QUICK if quick else comparison.Size()
    return comparison.Comparison(deployment, slowness, size).reuse()


def skew(deployment: Deployment, slowness: float, quick: bool) -> Report:
    """First tokens when one picture is hot."""
    size = comparison.QUICK if quick else comparison.Size()
    return comparison.Comparison(deployment, slowness, size).skew()


def vision(deployment: Deployment, slowness: float, quick: bool) -> Report:
    """Tiles/s of 1 to 4 vision replicas."""
    image_count = encoding.QUICK_IMAGE_COUNT if quick else encoding.IMAGE_COUNT
    return encoding.scaling(deployment, slowness, image_count)


def miss(deployment: Deployment, slowness: float, quick: bool) -> Report:
    """What a miss costs."""
    picture_count = misses.QUICK_PICTURE_COUNT if quick else misses.PICTURE_COUNT
    return misses.misses(deployment, slowness, picture_count)


SIMULATED = "simulated"
PARTS: Mapping[str, Callable[[Deployment, float, bool], Report]] = {
    "vision": vision,
    "miss": miss,
    "reuse": reuse,
    "skew": skew,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the parts that the command line names, or all; writes each one's report."""
    options = _options(arguments)
    options.output.mkdir(parents=True, exist_ok=True)
    book = ReportBook(options.output, BOOK, TITLE)
    command = shlex.join(["python", "-m", "tests.benchmarks.replicas", *sys.argv[1:]])
    names = options.parts or [SIMULATED, *PARTS]
    if SIMULATED in names:
        cells = simulate(options.quick)
        draw(cells, options.output / f"{BOOK}.svg")
        _put(book, SIMULATED, simulated_report(cells), command)
    if measured := [name for name in names if name != SIMULATED]:
        with running_stack(options.slowness) as deployment:
            for name in measured:
                report = PARTS[name](deployment, options.slowness, options.quick)
                _put(book, name, report, command)


def _put(book: ReportBook, name: str, report: Report, command: str) -> None:
    load, _, _ = os.getloadavg()
    book.put(report.title, report, command, load)
    print(f"\n{report.title}\n\n{report.table()}\n", flush=True)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.replicas")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{SIMULATED}, {', '.join(PARTS)}")
    parser.add_argument("--quick", action="store_true", help="fewer requests")
    parser.add_argument("--slowness", type=float, default=SLOWNESS, help="of the sleeping engines")
    parser.add_argument("--output", type=Path, default=FOLDER, help="folder of the report")
    options = parser.parse_args(arguments)
    if unknown := set(options.parts) - {SIMULATED, *PARTS}:
        parser.error(f"there is no part {', '.join(sorted(unknown))}")
    return options


if __name__ == "__main__":
    main()
