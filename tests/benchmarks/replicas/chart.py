"""The chart of the curves: a row for each load, a line for each way to choose."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
from matplotlib.ticker import FormatStrFormatter

from tests.benchmarks.replicas.curves import Cell

COLOURS, MARKERS = ("#0072b2", "#d55e00", "#009e73"), "osD"
PANEL_INCHES = 3.2
PANELS: Mapping[str, Callable[[Cell], float]] = {
    "most requests/s, a replica": lambda cell: cell.most.requests_per_second / cell.llm_count,
    "first token at p99, s": lambda cell: cell.open.percentile(99),
    "later turns that find their picture": lambda cell: cell.open.found_share,
}
mpl.use("Agg")
# The same figures give the same file.
mpl.rcParams["svg.hashsalt"] = "replicas"


def draw_cells(cells: Sequence[Cell], file: Path) -> None:
    """Writes the chart; its format is the file's ending."""
    loads = list(dict.fromkeys(cell.load for cell in cells))
    size = (PANEL_INCHES * len(PANELS), PANEL_INCHES * len(loads))
    figure, rows = plt.subplots(
        len(loads), len(PANELS), figsize=size, squeeze=False, sharex=True, layout="constrained"
    )
    for panels, load in zip(rows, loads, strict=True):
        for panel, (title, value) in zip(panels, PANELS.items(), strict=True):
            _draw_panel(panel, [cell for cell in cells if cell.load == load], value)
            panel.set_title(f"{load}: {title}", fontsize=8)
    for panel in rows[-1]:
        panel.set_xlabel("LLM replicas")
    names, lines = zip(*((line.get_label(), line) for line in rows[0][0].get_lines()), strict=True)
    figure.legend(lines, names, loc="outside lower center", ncols=len(names))
    figure.savefig(file, metadata={"Date": None} if file.suffix == ".svg" else None)
    plt.close(figure)


def _draw_panel(panel: Any, cells: Sequence[Cell], value: Callable[[Cell], float]) -> None:
    names = list(dict.fromkeys(cell.policy.name for cell in cells))
    for name, colour, marker in zip(names, COLOURS, MARKERS, strict=True):
        mine = [cell for cell in cells if cell.policy.name == name]
        counts, values = [cell.llm_count for cell in mine], [value(cell) for cell in mine]
        panel.plot(counts, values, label=name, color=colour, marker=marker, markersize=4)
    counts = sorted({cell.llm_count for cell in cells})
    panel.set(xscale="log")
    panel.set_xticks(counts, [str(number) for number in counts])
    panel.minorticks_off()
    if max(map(value, cells)) > 20 * min(map(value, cells)) > 0:
        panel.set(yscale="log")
        panel.yaxis.set_major_formatter(FormatStrFormatter("%g"))
    panel.grid(alpha=0.3)
