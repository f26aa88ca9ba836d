"""The results of a run: JSON lines, written as they come, and the report that is made of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.benchmarks.crossover.arrangements import ARRANGEMENTS
from tests.benchmarks.crossover.figures import Cell, Figures, percentile_ms
from tests.benchmarks.report import Report

TITLE = "Vision and LLM together or apart: arrangements on two GPUs"
COMPARED = """\
The three services as processes, asked over HTTP by clients that each send one request after
another; every request has new pictures and another prompt, streams, and always generates all its
tokens. A request goes to the gateway that the digest of its first picture says: that is done by
the clients: it is older than that of the gateways. TTFT and TPOT are milliseconds, p50 / p99; good
is the share of answers with a TTFT within 2 s and a TPOT within 50 ms; GPU is the share of the time
in which anything was computed, a card after the other; embedding is the milliseconds from a
request's last encoding until the LLM service had all its rows, p50 / p99."""
COLUMNS = (
    "model, arrangement", "tiles", "pictures", "clients", "requests/s", "TTFT", "TPOT", "good",
    "GPU", "embedding", "prompt", "answers", "failed",
)  # fmt: skip


@dataclass
class Results:
    """What a results file holds.

    Attributes:
        run: how it was made: the command, the machine, whether it is simulated.
        cells: the figures by cell.
        skipped: cells that have none, and why.
    """

    run: Mapping[str, Any]
    cells: dict[Cell, Figures] = field(default_factory=dict)
    skipped: dict[Cell, str] = field(default_factory=dict)

    def report(self) -> Report:
        """Returns the table."""
        report = Report(TITLE, COMPARED, COLUMNS)
        for cell, found in self.cells.items():
            report.add(_name(cell), _row(cell, found), {})
        return report

    def markdown(self, chart: str) -> str:
        """Returns the report as a page, with its chart of this name beside it."""
        used = {cell.arrangement for cell in [*self.cells, *self.skipped]}
        titles = [f"- {name}: {ARRANGEMENTS[name].title}" for name in ARRANGEMENTS if name in used]
        facts = [f"- {key}: {value}" for key, value in self.run["machine"].items()]
        parts = [
            f"# {TITLE}",
            COMPARED,
            *(["Folded onto fewer GPUs than it is for: marked with *."] if self.is_folded else []),
            "\n".join(titles),
            str(self.run["note"]),
            *([f"![Requests a second and good answers]({chart})"] if chart else []),
            self.report().table(),
            *self._skipped_part(),
            f"Made by `{self.run['command']}` on {self.run['date']}:",
            "\n".join(facts),
        ]
        return "\n\n".join(parts) + "\n"

    @property
    def is_folded(self) -> bool:
        """Whether any arrangement ran on fewer GPUs than it is for."""
        return any(cell.is_folded for cell in self.cells)

    def _skipped_part(self) -> list[str]:
        lines = [
            f"- {_name(cell)}, {cell.tile_count} tiles, {cell.picture_count} pictures,"
            f" {cell.client_count} clients: {why}"
            for cell, why in self.skipped.items()
        ]
        return ["Not measured:\n\n" + "\n".join(lines)] if lines else []


class ResultsFile:
    """Writes results line by line, so that what has been measured stays whatever comes."""

    def __init__(self, path: Path, run: Mapping[str, Any]) -> None:
        """Begins the file anew.

        Args:
            path: the file.
            run: as in Results.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"run": run}) + "\n", encoding="utf-8")
        self._path = path

    def add(self, cell: Cell, found: Figures) -> None:
        """Adds a cell's figures."""
        self._append({"cell": asdict(cell), "figures": asdict(found)})

    def skip(self, cell: Cell, why: str) -> None:
        """Adds that a cell has none, and why."""
        self._append({"cell": asdict(cell), "skipped": why})

    def _append(self, line: Mapping[str, Any]) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def read_results(path: Path) -> Results:
    """Reads a results file."""
    first, *lines = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    results = Results(first["run"])
    for line in lines:
        cell = Cell(**line["cell"])
        if "figures" in line:
            results.cells[cell] = Figures(**line["figures"])
        else:
            results.skipped[cell] = line["skipped"]
    return results


def merged(parts: Sequence[Results]) -> Results:
    """Returns the results of several runs of one kind on one machine as one; the last one counts
    where they have the same cell."""
    commands = dict.fromkeys(part.run["command"] for part in parts)
    whole = Results({**parts[0].run, "command": "`, `".join(commands)})
    for part in parts:
        whole.cells |= part.cells
        whole.skipped |= part.skipped
    whole.cells = {cell: whole.cells[cell] for cell in sorted(whole.cells, key=_place)}
    whole.skipped = {cell: why for cell, why in whole.skipped.items() if cell not in whole.cells}
    return whole


def _place(cell: Cell) -> tuple[str, int, int, int, int]:
    """Returns what puts cells into the order in which a grid is run."""
    arrangement = list(ARRANGEMENTS).index(cell.arrangement)
    return cell.shape, arrangement, -cell.client_count, -cell.tile_count, cell.picture_count


def _name(cell: Cell) -> str:
    return f"{cell.shape} {cell.arrangement}{'*' if cell.is_folded else ''}"


def _row(cell: Cell, found: Figures) -> Sequence[str]:
    return (
        str(cell.tile_count),
        str(cell.picture_count),
        str(cell.client_count),
        f"{found.requests_per_second:.2f}",
        _two(found.first_token_seconds, 0),
        _two(found.output_token_seconds, 1),
        f"{found.goodput:.0%}",
        " ".join(f"{share:.0%}" for share in found.gpu_use) or "-",
        _two(found.embedding_seconds, 0),
        f"{found.prompt_token_count:.0f}",
        str(found.answer_count),
        str(found.error_count),
    )


def _two(seconds: Sequence[float], digit_count: int) -> str:
    middle, high = percentile_ms(seconds, 50), percentile_ms(seconds, 99)
    return f"{middle:.{digit_count}f} / {high:.{digit_count}f}"
