"""The curves for 1 to 64 replicas, simulated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tests.benchmarks.replicas.simulation.fleet import Figures, Fleet, Setting, capacity
from tests.benchmarks.replicas.simulation.load import LOADS
from tests.benchmarks.replicas.simulation.routing import BOUNDED, RING, ROUND_ROBIN, Policy
from tests.benchmarks.report import Report

POLICIES = (ROUND_ROBIN, RING, BOUNDED)
REPLICA_COUNTS, QUICK_REPLICA_COUNTS = (1, 2, 4, 8, 16, 32, 64), (1, 4, 8)
CURVE_LOADS = ("half reused", "one hot")
# Of the 8B, one vision replica keeps so many of the LLM busy.
LLMS_A_VISION = 4
# Requests for each LLM replica, but no fewer than so many in all.
REQUEST_COUNT, LEAST_REQUEST_COUNT = 250, 3000
# Requests at a time for each LLM replica, where as much is asked as they can answer.
CLIENT_COUNT = 16
OPEN_LOAD = 0.7
COLUMNS = (
    "load, LLM replicas, way", "most requests/s", "first token p50", "p99",
    "later turns that find their picture", "ViT a request", "offers a request",
)  # fmt: skip
TITLE = "Simulated: 1 to 64 replicas"
COMPARED = f"""\
Discrete events, seeded, driven by the 8B's stage times on H200s: conversations of 1 to 4 turns (2.5
on average) about a picture of 1 to 13 tiles. "Half reused": half of the conversations take one of
2,000 known pictures, the others a new one; "one hot": half of them take the same picture. One
vision replica for {LLMS_A_VISION} of the LLM. Most requests/s: {CLIENT_COUNT} clients for each LLM
replica ask without a pause. First tokens in ms, and the other columns: requests come at random, at
{OPEN_LOAD:.0%} of what round robin can answer at most. The bound: a replica that would let a
request wait longer than {BOUNDED.spill_seconds:g} s refuses, and {BOUNDED.choice_count} others,
drawn at random, are asked for their queues; the shortest has it, unless the first one's is at most
{BOUNDED.home_factor:g} times as long. A gateway remembers for {BOUNDED.busy_seconds:g} s that a key
went elsewhere."""


@dataclass(frozen=True)
class Cell:
    """One point of the curves.

    Attributes:
        policy, load, llm_count: where it is.
        most: with as many requests as the replicas can answer.
        open: with requests at random.
    """

    policy: Policy
    load: str
    llm_count: int
    most: Figures
    open: Figures


def simulate(quick: bool) -> list[Cell]:
    """Returns all points."""
    assert set(CURVE_LOADS) <= set(LOADS)
    counts = QUICK_REPLICA_COUNTS if quick else REPLICA_COUNTS
    return [cell for load in CURVE_LOADS for count in counts for cell in _cells(load, count)]


def _cells(load: str, llm_count: int) -> list[Cell]:
    base = Setting(
        ROUND_ROBIN,
        load,
        llm_count,
        vision_count=-(-llm_count // LLMS_A_VISION),
        request_count=max(LEAST_REQUEST_COUNT, REQUEST_COUNT * llm_count),
    )
    rate = OPEN_LOAD * capacity(base)
    print(f"simulating {load}, {llm_count} replicas ...", flush=True)
    cells = []
    for policy in POLICIES:
        closed = replace(base, policy=policy, client_count=CLIENT_COUNT * llm_count)
        open_ = replace(base, policy=policy, requests_per_second=rate)
        cells.append(Cell(policy, load, llm_count, Fleet(closed).run(), Fleet(open_).run()))
    return cells


def simulated_report(cells: Sequence[Cell]) -> Report:
    """Returns the table; it needs no raw numbers, as the same seed gives the same."""
    report = Report(TITLE, COMPARED, COLUMNS)
    for cell in cells:
        found = cell.open
        row = (
            f"{cell.most.requests_per_second:.1f}",
            f"{found.percentile(50) * 1e3:.0f}",
            f"{found.percentile(99) * 1e3:.0f}",
            f"{found.found_share:.0%}",
            f"{found.encoded_share:.2f}",
            f"{found.tries:.2f}",
        )
        report.add(f"{cell.load}, {cell.llm_count}, {cell.policy.name}", row, {})
    return report


def draw(cells: Sequence[Cell], file: Path) -> None:
    """Writes the chart."""
    from tests.benchmarks.replicas.chart import draw_cells

    draw_cells(cells, file)
