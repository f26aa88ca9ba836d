"""What a load and its answers come to: the table of the loads, and that of the stages."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from tests.benchmarks.crossover.clients import Answer
from tests.benchmarks.crossover.figures import percentile_ms
from tests.benchmarks.report import Report
from tests.benchmarks.serving.product import Lines
from tests.benchmarks.serving.stages import STAGES, stage_seconds

COMPARED = """\
Gateway, vision service and LLM service as three processes on one machine, asked over HTTP from
other processes after a load that is not told. Each request shows a new JPEG as base64, of seeded
size and aspect, beside a seeded prompt of 3 to 280 words, streams, and always generates all its
tokens. Clients send one request after another; requests/s and tokens/s count all whole answers,
from the first request sent to the last one answered, which is the row's "seconds". TTFT is the time
to the first token, TPOT that of each further token of an answer, a gap the time between two
arrivals of tokens: milliseconds, p50 / p99. Failed are those with an HTTP status or a connection
that broke; 429: refused for load."""
COLUMNS = (
    "load", "requests/s", "tokens/s", "TTFT", "TPOT", "gap", "prompt", "answers", "failed",
    "seconds",
)  # fmt: skip
STAGES_COMPARED = """\
Where the time to the first token goes, by the clocks in the logs of the three processes, the same
requests as in the loads' table: milliseconds, p50 / p99 of each stage. What no clock tells is the
difference of those around it: HTTP, which has the client's wait for a busy gateway in it; JSON and
the start of the call; "picture to vision, header back", which has the waits of both event loops in
it; and the embedding's way, which has the first token's way back to the gateway in it. So the
stages of a request are all of its time to the first token; their medians need not be. A tree whose
logs do not have the worker's wait yet has it in "picture to vision"; its engine begins when the
gateway has handed over the last piece."""
TURNS_COMPARED = """\
The time to the first token of a question about a new picture, and of a further question in the same
conversation, which comes with the picture and the answer as always; one conversation at a time,
over HTTP: milliseconds."""
ONE = "1 client"


@dataclass(frozen=True)
class Row:
    """The answers to one load.

    Attributes:
        product: whose.
        tile_count, client_count: of each picture; that asked at a time.
        answers: in any order.
        stages: the seconds of each stage, of all whole answers.
    """

    product: str
    tile_count: int
    client_count: int
    answers: Sequence[Answer]
    stages: dict[str, list[float]]

    @property
    def case(self) -> str:
        """Its name in the table."""
        return f"{self.tile_count} tiles, {self.clients}, {self.product}"

    @property
    def clients(self) -> str:
        """How many clients asked."""
        return ONE if self.client_count == 1 else f"{self.client_count} clients"

    @property
    def whole(self) -> list[Answer]:
        """The answers that did not fail."""
        return [answer for answer in self.answers if not answer.error]


def row_stages(whole: Sequence[Answer], lines: dict[str, Lines]) -> dict[str, list[float]]:
    """Returns the seconds of each stage of these answers.

    Raises:
        ValueError: a picture became another number of tiles than was meant.
    """
    each = [stage_seconds(one.first_token_seconds, lines[one.request_id]) for one in whole]
    return {stage: [round(seconds[stage], 6) for seconds in each] for stage in STAGES}


def check_tiles(lines: dict[str, Lines], tile_count: int) -> None:
    """Raises ValueError where a picture became another number of tiles than was meant."""
    found = {line["vision"]["tile_count"] for line in lines.values()}
    if found - {tile_count}:
        raise ValueError(f"pictures of {tile_count} tiles became {sorted(found)}")


def load_report(rows: Sequence[Row]) -> Report:
    """Returns the table of the loads."""
    report = Report("serving over HTTP", COMPARED, COLUMNS)
    for row in rows:
        add_load(report, row)
    return report


def add_load(report: Report, row: Row) -> None:
    """Adds a load's row; of the gaps their percentiles from 0 to 100 are kept."""
    whole = row.whole
    seconds = max(one.last for one in row.answers) - min(one.sent for one in row.answers)
    first = [one.first_token_seconds for one in whole]
    steps = [one.output_token_seconds for one in whole]
    gaps = [later - earlier for one in whole for earlier, later in pairwise(one.arrivals)]
    cells = [
        f"{len(whole) / seconds:.2f}",
        f"{sum(one.output_token_count for one in whole) / seconds:.0f}",
        _p50_p99(first, 0),
        _p50_p99(steps, 1),
        _p50_p99(gaps, 1),
        f"{statistics.median(one.prompt_token_count for one in whole):.0f}" if whole else "-",
        str(len(whole)),
        _failures(row.answers),
        f"{seconds:.1f}",
    ]
    percentiles = np.percentile(gaps, range(101)).round(5).tolist() if gaps else []
    raw = {"TTFT": first, "TPOT": steps, "gap percentiles": percentiles, "wall": [seconds]}
    report.add(row.case, cells, {name: [round(one, 5) for one in raw[name]] for name in raw})


def _failures(answers: Sequence[Answer]) -> str:
    counts = Counter(one.status for one in answers if one.error)
    words = [f"{count} x {status or 'broken'}" for status, count in sorted(counts.items())]
    return ", ".join(words) or "0"


def stages_report(rows: Sequence[Row], product: str, tile_count: int) -> Report:
    """Returns the table of the stages of one product's loads of so many tiles."""
    told = [row for row in rows if (row.product, row.tile_count) == (product, tile_count)]
    name = f"stages of the first token, {tile_count} tiles, {product}"
    report = Report(name, STAGES_COMPARED, ("stage", *(row.clients for row in told)))
    for stage in STAGES:
        cells = [_p50_p99(row.stages[stage], 1) for row in told]
        report.add(stage, cells, {row.clients: row.stages[stage] for row in told})
    medians = [sum(percentile_ms(row.stages[stage], 50) for stage in STAGES) for row in told]
    report.add("sum of the medians", [f"{total:.1f}" for total in medians], {})
    first = [[one.first_token_seconds for one in row.whole] for row in told]
    report.add("TTFT, by the clients", [_p50_p99(seconds, 1) for seconds in first], {})
    return report


def turns_report() -> Report:
    """Returns the table of the turns, yet without a row."""
    columns = ("conversations", "first turn", "second turn", "second over first")
    return Report("two turns over HTTP", TURNS_COMPARED, columns)


def add_turns(report: Report, case: str, turns: Sequence[tuple[float, float]]) -> None:
    """Adds what conversations took, of each the seconds of both turns."""
    first, second = ([turn[index] for turn in turns] for index in (0, 1))
    ratio = statistics.median(second) / statistics.median(first)
    cells = [_p50_p99(first, 1), _p50_p99(second, 1), f"{ratio:.3f}"]
    report.add(case, cells, {"first turn": first, "second turn": second})


def _p50_p99(seconds: Sequence[float], digit_count: int) -> str:
    if not seconds:
        return "-"
    middle, high = percentile_ms(seconds, 50), percentile_ms(seconds, 99)
    return f"{middle:.{digit_count}f} / {high:.{digit_count}f}"
