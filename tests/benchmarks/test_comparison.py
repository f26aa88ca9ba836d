"""Two source trees in turn: which runs, and what their durations come to."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.benchmarks import __main__ as program
from tests.benchmarks.comparison import compare

# A benchmark that takes so long, the second time ten times as long.
PROGRAM = """\
import json, pathlib, sys
_, name, _, folder, *words = sys.argv
print("the older one" if {seconds} == 0.002 else "the newer one", flush=True)
file = pathlib.Path(folder) / f"{{name}}.json"
file.parent.mkdir(parents=True, exist_ok=True)
seconds = {seconds} * (10 if file.exists() else 1)
cases = {{"case": {{"way": [seconds], "{own}": [1.0]}}, "{own}": {{"way": [1.0]}}}}
file.write_text(json.dumps({{"seconds": cases, "words": words}}))
"""


def write_tree(folder: Path, seconds: float, own: str) -> Path:
    package = folder / "tests" / "benchmarks"
    package.mkdir(parents=True)
    for parent in (package.parent, package):
        (parent / "__init__.py").touch()
    (package / "__main__.py").write_text(PROGRAM.format(seconds=seconds, own=own))
    return folder


@pytest.fixture
def trees(tmp_path: Path) -> tuple[Path, Path]:
    return write_tree(tmp_path / "old", 0.002, "gone"), write_tree(tmp_path / "new", 0.003, "added")


def test_each_tree_runs_its_own_benchmark_in_turn(
    trees: tuple[Path, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    report = compare("name", trees, ["--more", "7"], tmp_path / "out", round_count=2)
    # What only one of them has is left out; of two rounds, it is the median.
    assert report.rows == [["case: way", "11.00", "16.50", "1.500"]]
    assert report.seconds == {"case: way": {"before": [0.002, 0.02], "now": [0.003, 0.03]}}
    said = [line for line in capfd.readouterr().out.splitlines() if line.startswith("the ")]
    assert said == ["the older one", "the newer one"] * 2
    document = json.loads((tmp_path / "out" / "before" / "name.json").read_text())
    assert document["words"] == ["--more", "7"]


def test_what_took_no_time_before_has_no_ratio(tmp_path: Path) -> None:
    trees = [write_tree(tmp_path / name, seconds, "own") for name, seconds in (("a", 0), ("b", 1))]
    report = compare("name", trees, [], tmp_path / "out", round_count=1)
    assert ["case: way", "0.00", "1000.00", "-"] in report.rows


def test_the_program_writes_the_comparison_of_the_benchmarks_that_are_named(
    trees: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    older, newer = trees
    monkeypatch.setattr(program, "HERE", newer)
    words = ["transfer", "start", "--baseline", str(older), "--output", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["benchmarks", *words])
    program.main()
    parts = json.loads((tmp_path / "out" / "before_and_now.json").read_text())
    assert [*parts] == ["transfer", "start"]
    for part in parts.values():
        assert part["seconds"] == {"case: way": {"before": [0.002], "now": [0.003]}}
        assert "transfer start --baseline" in part["command"]
