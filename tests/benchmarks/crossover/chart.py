"""The chart of a run: requests a second and the share of good answers, by pictures a request."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
from matplotlib.ticker import FormatStrFormatter, LogLocator

from tests.benchmarks.crossover.arrangements import ARRANGEMENTS
from tests.benchmarks.crossover.figures import Cell, Figures
from tests.benchmarks.crossover.results import Results

# One for each arrangement; told apart without colour by the markers.
COLOURS, MARKERS = ("#0072b2", "#d55e00", "#009e73"), "osD"
LINES = ("-", "--", ":", "-.")
PANEL_INCHES = 3.0
mpl.use("Agg")
# The same results give the same file.
mpl.rcParams["svg.hashsalt"] = "crossover"


def draw(results: Results, file: Path) -> None:
    """Writes the chart; its format is the file's ending.

    A column for each model and number of tiles, a line for each arrangement and number of clients.
    """
    kinds = list(dict.fromkeys((cell.shape, cell.tile_count) for cell in results.cells))
    figure, rows = plt.subplots(
        2,
        len(kinds),
        figsize=(PANEL_INCHES * max(2, len(kinds)), 2 * PANEL_INCHES),
        squeeze=False,
        sharex=True,
        layout="constrained",
    )
    for column, (shape, tile_count) in enumerate(kinds):
        cells = {
            cell: found
            for cell, found in results.cells.items()
            if (cell.shape, cell.tile_count) == (shape, tile_count)
        }
        _draw_column(rows[0][column], rows[1][column], cells)
        rows[0][column].set_title(f"{shape}, {tile_count} tile{'s' * (tile_count > 1)} a picture")
    rows[0][0].set_ylabel("requests/s")
    rows[1][0].set_ylabel("good answers")
    lines = {line.get_label(): line for panel in rows[0] for line in panel.get_lines()}
    names = sorted(lines, key=lambda name: list(ARRANGEMENTS).index(name.partition(",")[0]))
    figure.legend([lines[name] for name in names], names, loc="outside lower center", ncols=6)
    figure.suptitle(results.run["chart_title"])
    figure.savefig(file, dpi=110, metadata={"Date": None} if file.suffix == ".svg" else None)
    plt.close(figure)


def _draw_column(rates: Any, shares: Any, cells: dict[Cell, Figures]) -> None:
    client_counts = sorted({cell.client_count for cell in cells}, reverse=True)
    for name, colour, marker in zip(ARRANGEMENTS, COLOURS, MARKERS, strict=True):
        for client_count, line in zip(client_counts, LINES, strict=False):
            found = sorted(
                (cell.picture_count, cells[cell].requests_per_second, cells[cell].goodput)
                for cell in cells
                if (cell.arrangement, cell.client_count) == (name, client_count)
            )
            if found:
                pictures, rate, share = zip(*found, strict=True)
                style = {"color": colour, "marker": marker, "linestyle": line, "markersize": 4}
                rates.plot(pictures, rate, label=f"{name}, {client_count} clients", **style)
                shares.plot(pictures, share, **style)
    picture_counts = sorted({cell.picture_count for cell in cells})
    rates.set(xscale="log", yscale="log")
    rates.set_xticks(picture_counts, [str(number) for number in picture_counts])
    rates.yaxis.set_major_locator(LogLocator(subs=(1, 1.2, 1.5, 2, 3, 4, 5, 6, 8)))
    rates.yaxis.set_major_formatter(FormatStrFormatter("%g"))
    rates.minorticks_off()
    rates.grid(alpha=0.3)
    shares.set(ylim=(-0.05, 1.05), xlabel="pictures a request")
    shares.grid(alpha=0.3)
