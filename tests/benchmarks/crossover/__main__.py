"""Vision and LLM together or apart: from how many pictures a request on does it pay to split?

`python -m tests.benchmarks.crossover [--simulate] [--quick] [--results FILE.jsonl]` measures,
writes FILE.jsonl line by line, and FILE.md with the table; with matplotlib also FILE.svg.
`python -m tests.benchmarks.crossover --plot FILE.jsonl [MORE.jsonl]` makes the latter two again, of
several runs of one kind if need be.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from tests.benchmarks.crossover.arrangements import ARRANGEMENTS
from tests.benchmarks.crossover.bench import QUICK, Bench, Grid, Mode, Plan, arrangements_for
from tests.benchmarks.crossover.results import TITLE, ResultsFile, merged, read_results
from tests.benchmarks.report import Report
from tests.benchmarks.shapes import FAMILIES

RESULTS = Path(__file__).parents[3] / "docs" / "benchmarks" / "crossover.jsonl"
# The quicker one first: the time that it leaves is the other's.
SHAPES = ("1B", "8B")
# One simulated second takes so many, so that what this machine computes stays small beside it. The
# 1B answers more requests a second.
SLOWNESS: Mapping[str, float] = {"8B": 3.0, "1B": 5.0}
# Those of a machine without any; a CPU counts as one.
GPU_COUNTS: Mapping[Mode, int] = {"simulated": 2, "cpu": 1}
CHART_TITLES: Mapping[Mode, str] = {
    "cuda": "GPUs: {}",
    "cpu": "tiny models on a CPU",
    "simulated": "simulated H200s: {}",
}
NOTES: Mapping[Mode, str] = {
    "cuda": "The released shapes with random weights, the engines as they ship.",
    "cpu": "Tiny models on the CPU: this tries the program out, its figures mean nothing.",
    "simulated": (
        "**Simulated**: services, gateways, calls and HTTP are real, on a machine without a GPU;"
        " the engines sleep as long as one H200 was measured to compute"
        " (tests/benchmarks/crossover/stage_times.py), and two that share a GPU slow each other"
        " down. Decoding a picture and the embedding's way through the host are waits as well."
        " Not simulated: the memory of the KV cache, prompt lengths that cost more the first time,"
        " cores that become scarce."
    ),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, or reads what was measured; writes the report and prints its table."""
    options = _options(arguments)
    if not options.plot:
        plan = _plan(options)
        Bench(plan, ResultsFile(options.results, _run(plan))).run()
    write_report(options.plot or [options.results])


def write_report(files: Sequence[Path]) -> None:
    """Writes the page and the chart beside the first of some results files; prints the table."""
    file, results = files[0], merged([read_results(file) for file in files])
    chart = file.with_suffix(".svg")
    if find_spec("matplotlib") is None:
        print("there is no matplotlib here: the chart is left out")
    elif results.cells:
        from tests.benchmarks.crossover.chart import draw

        draw(results, chart)
    page = results.markdown(chart.name if chart.is_file() else "")
    file.with_suffix(".md").write_text(page, encoding="utf-8")
    print(f"\n{results.report().table()}\n\n{file.with_suffix('.md')}", flush=True)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.crossover")
    parser.add_argument(
        "--plot", type=Path, nargs="+", metavar="RESULTS.jsonl", help="make one report of these"
    )
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="RESULTS.jsonl")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--simulate", action="store_true", help="engines that sleep; no GPU")
    mode.add_argument("--tiny", action="store_true", help="tiny models on the CPU; no GPU")
    parser.add_argument("--gpus", type=int, help="use no more than so many; simulated: 2")
    parser.add_argument("--slowness", type=float, help="of the simulation")
    parser.add_argument("--shape", nargs="+", choices=FAMILIES, default=SHAPES)
    parser.add_argument("--arrangement", nargs="+", choices=ARRANGEMENTS, default=[])
    parser.add_argument("--quick", action="store_true", help="a smaller grid: eight minutes")
    parser.add_argument("--pictures", nargs="+", type=int, help="pictures a request")
    parser.add_argument("--tiles", nargs="+", type=int, choices=(13, 1), help="tiles a picture")
    parser.add_argument("--clients", nargs="+", type=int, help="requests at a time")
    parser.add_argument("--tokens", type=int, help="tokens of an answer")
    parser.add_argument("--rounds", type=int, help="answers a client in each cell")
    parser.add_argument("--cell-seconds", type=float, help="longest time for a cell")
    parser.add_argument("--seconds", type=float, help="time after which no cell begins")
    parser.add_argument("--checkpoints", type=Path, help="keep and use again what is written here")
    options = parser.parse_args(arguments)
    if not (options.plot or options.simulate or options.tiny or torch.cuda.device_count()):
        parser.error("there is no GPU here; --simulate needs none")
    return options


def _plan(options: argparse.Namespace) -> Plan:
    mode: Mode = "simulated" if options.simulate else "cpu" if options.tiny else "cuda"
    given = {
        "picture_counts": options.pictures,
        "tile_counts": options.tiles,
        "client_counts": options.clients,
        "token_count": options.tokens,
        "round_count": options.rounds,
        "cell_seconds": options.cell_seconds,
        "seconds": options.seconds,
    }
    grid = replace(
        QUICK if options.quick else Grid(),
        **{name: value for name, value in given.items() if value is not None},
    )
    slowness = {shape: options.slowness or SLOWNESS[shape] for shape in options.shape}
    if mode != "simulated":
        slowness = dict.fromkeys(options.shape, 1.0)
    gpu_count = torch.cuda.device_count() if mode == "cuda" else GPU_COUNTS[mode]
    return Plan(
        mode=mode,
        shapes=options.shape,
        arrangements=options.arrangement,
        grid=grid,
        gpu_count=min(options.gpus or gpu_count, gpu_count),
        slowness=slowness,
        checkpoints=options.checkpoints,
    )


def _run(plan: Plan) -> dict[str, Any]:
    """Returns what the results tell of their making."""
    command = shlex.join(["python", "-m", "tests.benchmarks.crossover", *sys.argv[1:]])
    load, _, _ = os.getloadavg()
    document = Report(TITLE, "", ("",)).document(command, load)
    folded = [
        name
        for name in plan.arrangements or arrangements_for(plan.gpu_count)
        if ARRANGEMENTS[name].gpu_count > plan.gpu_count
    ]
    note = NOTES[plan.mode]
    if folded:
        note += f" There was one GPU: {', '.join(folded)} ran folded onto it."
    return {
        "mode": plan.mode,
        "slowness": plan.slowness,
        "note": note,
        "gpu_count": plan.gpu_count,
        "chart_title": CHART_TITLES[plan.mode].format(plan.gpu_count),
        **{key: document[key] for key in ("command", "date", "machine")},
    }


if __name__ == "__main__":
    main()
