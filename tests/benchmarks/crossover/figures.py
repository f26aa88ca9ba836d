"""The figures of one cell of the grid, from its answers, the services' logs and the GPUs' use."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np

from tests.benchmarks.crossover.clients import Answer
from tests.benchmarks.crossover.gpu_use import GpuUse
from tests.benchmarks.crossover.stamped_llm import ARRIVED

# An answer is good that begins within this time and then writes each token within that.
GOOD_FIRST_TOKEN_SECONDS, GOOD_OUTPUT_TOKEN_SECONDS = 2.0, 0.05


@dataclass(frozen=True)
class Cell:
    """One place of the grid.

    Attributes:
        shape: of the model, e.g. "8B".
        arrangement: a key of ARRANGEMENTS.
        is_folded: whether it ran on fewer GPUs than it is for.
        tile_count, picture_count: tiles a picture, pictures a request.
        client_count: requests at a time.
    """

    shape: str
    arrangement: str
    is_folded: bool
    tile_count: int
    picture_count: int
    client_count: int


@dataclass(frozen=True)
class Figures:
    """What was measured in a cell.

    Attributes:
        answer_count, error_count: answers within the window, and those among them that failed.
        error: the first failure.
        window_seconds: from the first answer's end that is not counted to the last one's.
        requests_per_second: whole answers over the window.
        first_token_seconds, output_token_seconds: of each whole answer, the shortest first.
        goodput: the share of all answers that were good.
        gpu_use: of each card, from 0 to 1; empty where it is not known.
        embedding_seconds: of each whole answer, from its last embedding's encoding to the moment
            when the LLM service had all of them; the shortest first.
        prompt_token_count: mean.
    """

    answer_count: int
    error_count: int
    error: str
    window_seconds: float
    requests_per_second: float
    first_token_seconds: list[float]
    output_token_seconds: list[float]
    goodput: float
    gpu_use: list[float]
    embedding_seconds: list[float]
    prompt_token_count: float


def figures(
    answers: Sequence[Answer],
    client_count: int,
    logs: Iterable[Path],
    use: GpuUse,
    slowness: float,
) -> Figures | None:
    """Returns a cell's figures, None when too few answers have come to tell.

    The first answer of each client is the load's beginning and not counted, so that the window goes
    from one moment of full load to another.

    Args:
        answers: in the order in which they ended.
        client_count: how many clients asked.
        logs: of the vision and LLM services.
        use: of the GPUs.
        slowness: how many seconds of the clock are one of the figures'.
    """
    early_count = min(client_count, len(answers) // 2)
    early, counted = answers[:early_count], answers[early_count:]
    whole = [answer for answer in counted if not answer.error]
    if not early or not whole:
        return None
    begin, end = early[-1].last, counted[-1].last
    seconds = (end - begin) / slowness
    ways = embedding_ways(logs)
    errors = [answer.error for answer in counted if answer.error]
    good = [answer for answer in whole if _is_good(answer, slowness)]
    return Figures(
        answer_count=len(counted),
        error_count=len(errors),
        error=errors[0] if errors else "",
        window_seconds=round(seconds, 3),
        requests_per_second=round(len(whole) / seconds, 4),
        first_token_seconds=_sorted((one.first_token_seconds for one in whole), slowness),
        output_token_seconds=_sorted((one.output_token_seconds for one in whole), slowness),
        goodput=round(len(good) / len(counted), 4),
        gpu_use=use.between(begin, end),
        embedding_seconds=_sorted(
            (ways[one.request_id] for one in whole if one.request_id in ways), slowness
        ),
        prompt_token_count=round(mean(answer.prompt_token_count for answer in whole), 1),
    )


def percentile_ms(seconds: Sequence[float], percent: float) -> float:
    """Returns a percentile in milliseconds; not a number for no durations."""
    return float(np.percentile(seconds, percent)) * 1e3 if seconds else float("nan")


def embedding_ways(logs: Iterable[Path]) -> dict[str, float]:
    """Returns by request id the seconds from its last encoding to the arrival of all embeddings."""
    encoded: dict[str, float] = {}
    arrived: dict[str, float] = {}
    for line in _lines(logs):
        name, moment = line.get("request_id", ""), line.get("timestamp", "")
        if line.get("route") == "EncodeImage" and line["status"] == "OK":
            moment_encoded = _seconds(moment) - line["transfer_seconds"]
            encoded[name] = max(encoded.get(name, 0.0), moment_encoded)
        elif line["event"] == ARRIVED:
            arrived[name] = _seconds(moment)
    return {name: arrived[name] - encoded[name] for name in arrived.keys() & encoded.keys()}


def _lines(logs: Iterable[Path]) -> Iterable[Mapping[str, Any]]:
    """Yields the events of logs; not what libraries print among them."""
    for log in logs:
        for text in log.read_text(encoding="utf-8", errors="replace").splitlines():
            if text.startswith("{") and text.endswith("}"):
                yield json.loads(text)


def _seconds(timestamp: str) -> float:
    return datetime.fromisoformat(timestamp.replace("Z", "+00:00")).timestamp()


def _is_good(answer: Answer, slowness: float) -> bool:
    return (
        answer.first_token_seconds / slowness <= GOOD_FIRST_TOKEN_SECONDS
        and answer.output_token_seconds / slowness <= GOOD_OUTPUT_TOKEN_SECONDS
    )


def _sorted(seconds: Iterable[float], slowness: float) -> list[float]:
    return sorted(round(value / slowness, 6) for value in seconds)
