"""Ring hash against round robin: the same services, asked through two gateways in turn."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

from tests.benchmarks.crossover.arrangements import Deployment
from tests.benchmarks.crossover.clients import Answer, ClosedLoop
from tests.benchmarks.crossover.figures import percentile_ms
from tests.benchmarks.crossover.workload import Photo, photos
from tests.benchmarks.replicas.arrivals import ask_at_random
from tests.benchmarks.replicas.questions import NamedPictures, Pick, half_as_many, one_hot
from tests.benchmarks.replicas.stack import HASHED, IN_TURN
from tests.benchmarks.report import Report

WAYS: Mapping[str, int] = {"round robin": IN_TURN, "ring hash": HASHED}
# The first token is what is asked for: no choice of a replica changes what decoding takes.
TOKEN_COUNT = 1
CELL_SECONDS = 300.0
# For cancelled requests to leave the services.
SETTLE_SECONDS = 1.0
# Of what round robin can answer, so much is asked in the open loop.
OPEN_LOAD = 0.7
COLUMNS = ("way", "requests/s", "of round robin's", "first token p50", "p99", "answers", "failed")
NOTE = (
    "Pictures of 13 tiles, one token out, four replicas of each service; ms and requests/s of the"
    " 8B on H200s, whose times the engines sleep. Both gateways ask the same processes, in turn."
)


@dataclass(frozen=True)
class Size:
    """How much is asked.

    Attributes:
        client_count: at a time, in the closed loop.
        answer_count: in each round of each way.
        round_count: that count; one comes before them.
    """

    client_count: int = 32
    answer_count: int = 400
    round_count: int = 5


QUICK = Size(answer_count=250, round_count=1)


@dataclass
class Found:
    """What one way to choose has brought.

    Attributes:
        rates: simulated requests/s of each round.
        first_token_seconds: simulated, of all answers.
        error_count: requests that failed.
    """

    rates: list[float] = field(default_factory=list)
    first_token_seconds: list[float] = field(default_factory=list)
    error_count: int = 0


class Comparison:
    """Asks both gateways the same kind of requests about different pictures."""

    def __init__(self, deployment: Deployment, slowness: float, size: Size) -> None:
        self._deployment = deployment
        self._slowness = slowness
        self._size = size
        self._photos: list[Photo] = photos(13, shrink=8)

    def reuse(self) -> Report:
        """Returns requests/s with half as many pictures as requests, all replicas busy."""
        pick = half_as_many(self._size.answer_count)
        found = self._rounds(lambda way, seed: self._closed(way, self._workload(pick, seed)))
        title = "Half as many pictures as requests: requests/s"
        return report(title, f"{self._size.client_count} clients, closed loop. {NOTE}", found)

    def skew(self) -> Report:
        """Returns first tokens while half of all requests are about one picture."""
        most = self._closed(IN_TURN, self._workload(one_hot, "capacity"))
        pace = OPEN_LOAD * rate(most)
        found = self._rounds(lambda way, seed: self._open(way, self._workload(one_hot, seed), pace))
        title = "Half of the requests about one picture: first tokens"
        return report(
            title,
            f"Requests come at random, {pace * self._slowness:.1f} a second: {OPEN_LOAD:.0%} of"
            f" what round robin answers in a closed loop. {NOTE}",
            found,
        )

    def _rounds(self, ask: Callable[[int, str], list[Answer]]) -> dict[str, Found]:
        found = {name: Found() for name in WAYS}
        for round_number in range(1 + self._size.round_count):
            for name, way in WAYS.items():
                answers = ask(way, f"{name} {round_number}")
                time.sleep(SETTLE_SECONDS)
                print(f"round {round_number}, {name}: {len(answers)} answers", flush=True)
                if round_number:
                    self._add(found[name], answers)
        return found

    def _add(self, found: Found, answers: Sequence[Answer]) -> None:
        whole = [answer for answer in answers if not answer.error]
        found.error_count += len(answers) - len(whole)
        found.rates.append(rate(answers) * self._slowness)
        found.first_token_seconds += [one.first_token_seconds / self._slowness for one in whole]

    def _workload(self, pick: Pick, seed: str) -> NamedPictures:
        return NamedPictures(self._deployment.model, self._photos, 1, TOKEN_COUNT, seed, pick)

    def _closed(self, way: int, workload: NamedPictures) -> list[Answer]:
        loop = ClosedLoop(
            [self._deployment.urls[way]],
            workload,
            self._size.client_count,
            self._size.client_count + self._size.answer_count,
            CELL_SECONDS,
        )
        return asyncio.run(loop.run())[self._size.client_count :]

    def _open(self, way: int, workload: NamedPictures, pace: float) -> list[Answer]:
        url = self._deployment.urls[way]
        return asyncio.run(ask_at_random(url, workload, self._size.answer_count, pace))


def rate(answers: Sequence[Answer]) -> float:
    """Returns whole answers a second, from the first one's end to the last one's."""
    ends = sorted(answer.last for answer in answers if not answer.error)
    return (len(ends) - 1) / (ends[-1] - ends[0])


def report(title: str, compared: str, found: Mapping[str, Found]) -> Report:
    """Returns the table of a comparison, with what each way has found."""
    table = Report(title, compared, COLUMNS)
    baseline = median(found["round robin"].rates)
    for name, one in found.items():
        row = (
            f"{median(one.rates):.2f}",
            f"{median(one.rates) / baseline:.2f}x",
            f"{percentile_ms(one.first_token_seconds, 50):.0f}",
            f"{percentile_ms(one.first_token_seconds, 99):.0f}",
            str(len(one.first_token_seconds)),
            str(one.error_count),
        )
        table.add(name, row, {"first token": one.first_token_seconds})
    return table
