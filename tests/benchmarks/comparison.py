"""Benchmarks of two source trees in turn: what is slower or faster than it was."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.benchmarks.measurement import median_ms
from tests.benchmarks.report import Report

COMPARED = """\
`python -m tests.benchmarks {name}` in both source trees, one after the other, {round_count} times;
medians of all its durations that both have. Each tree has its own benchmark, too: where that has
changed, so may what its figures mean."""
COLUMNS = ("milliseconds", "before", "now", "now / before")

# Durations by case and way, of all rounds.
Durations = dict[tuple[str, str], list[float]]


def compare(
    name: str, trees: Sequence[Path], words: Sequence[str], output: Path, round_count: int
) -> Report:
    """Runs a benchmark of the tree before and of that of now in turn.

    Args:
        name: the benchmark's.
        trees: both folders, the older one first.
        words: further words of its command line.
        output: gets the older one's reports in a folder "before", and the newer one's.
        round_count: how often each runs.

    Raises:
        subprocess.CalledProcessError: one failed.
    """
    folders = (output / "before", output)
    before: Durations = defaultdict(list)
    now: Durations = defaultdict(list)
    for _ in range(round_count):
        for tree, folder, durations in zip(trees, folders, (before, now), strict=True):
            _run(name, tree, words, folder.absolute())
            _add(durations, json.loads((folder / f"{name}.json").read_text(encoding="utf-8")))
    compared = COMPARED.format(name=name, round_count=round_count)
    report = Report(f"{name}, before and now", compared, COLUMNS)
    for key in sorted(before.keys() & now.keys()):
        earlier, later = median_ms(before[key]), median_ms(now[key])
        ratio = f"{later / earlier:.3f}" if earlier else "-"  # of CPU times some are 0
        cells = [f"{earlier:.2f}", f"{later:.2f}", ratio]
        report.add(": ".join(key), cells, {"before": before[key], "now": now[key]})
    return report


def _run(name: str, tree: Path, words: Sequence[str], folder: Path) -> None:
    """Runs a tree's benchmark, which prints its own table."""
    print(f"{name} of {tree}", flush=True)
    command = [sys.executable, "-m", "tests.benchmarks", name, "--output", str(folder), *words]
    variables = {**os.environ, "PYTHONPATH": str(tree.absolute())}
    subprocess.run(command, cwd=tree, env=variables, check=True)


def _add(
    durations: Durations, document: Mapping[str, Mapping[str, Mapping[str, list[float]]]]
) -> None:
    for case, ways in document["seconds"].items():
        for way, seconds in ways.items():
            durations[case, way] += seconds
