"""The whole product under load: three processes, clients over HTTP with a picture each."""

from __future__ import annotations

import json
import multiprocessing
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from models.demo.stack import ServiceProcess, Stack
from tests.benchmarks.chat_clients import Answer, Question, run_clients
from tests.benchmarks.engine_parts import COLUMNS, add_times
from tests.benchmarks.report import Report

CLIENT_PROCESS_COUNT = 2
# With one picture of 13 tiles, a prompt of 3,383 tokens (Qwen2), 3,385 (InternLM2).
TEXT = "What is shown in this picture?"
COMPARED = """\
Gateway, vision service and LLM service as three processes on one machine, asked over HTTP from
other processes; each request shows a new JPEG as base64, streams, and always generates all its
tokens. Idle: one request at a time; "after preprocessing" is its time to the first token less the
decoding and tiling that the vision service reports. Under load: clients that each send one request
after another; requests/s counts all of them, from the first one sent to the last one answered.
Times are milliseconds."""


@dataclass(frozen=True)
class LoadSizes:
    """How much is asked of the three services."""

    idle_count: int = 7
    idle_token_count: int = 8
    client_count: int = 32
    round_count: int = 3
    token_count: int = 128
    width: int = 1000
    height: int = 747


@dataclass(frozen=True)
class Setup:
    """What is started: a checkpoint, and options of the services."""

    checkpoint: Path
    service_arguments: Sequence[str]
    llm_arguments: Sequence[str]


def serving(setup: Setup, sizes: LoadSizes, goals: Mapping[str, str]) -> list[Report]:
    """Asks three new services one request at a time, and then many.

    Raises:
        StartError: a service did not start.
        aiohttp.ClientError, ValueError: a request failed.
    """
    report = Report("serving over HTTP", COMPARED, COLUMNS)
    spawn = multiprocessing.get_context("spawn")
    with (
        tempfile.TemporaryDirectory() as folder,
        ProcessPoolExecutor(CLIENT_PROCESS_COUNT, mp_context=spawn) as clients,
    ):
        idle, rounds = _bodies(clients, setup.checkpoint.name, sizes)
        with Stack(
            setup.checkpoint,
            Path(folder),
            service_arguments=setup.service_arguments,
            llm_arguments=setup.llm_arguments,
        ) as stack:
            answers = clients.submit(run_clients, stack.url, [idle]).result()
            _add_idle(report, answers, _encodings(stack.vision), goals)
            _add_load(report, _under_load(clients, stack.url, rounds), goals)
    return [report]


def _bodies(
    clients: Executor, model: str, sizes: LoadSizes
) -> tuple[list[bytes], list[list[bytes]]]:
    """Returns the requests of the idle time, the first to warm up, and those of each client."""
    question = Question(model, TEXT, sizes.width, sizes.height, sizes.token_count)
    idle_question = replace(question, token_count=sizes.idle_token_count)
    idle = list(clients.map(idle_question.body, range(1 + sizes.idle_count)))
    seeds = range(len(idle), len(idle) + sizes.client_count * sizes.round_count)
    bodies = list(clients.map(question.body, seeds))
    return idle, [bodies[index :: sizes.client_count] for index in range(sizes.client_count)]


def _under_load(clients: Executor, url: str, rounds: Sequence[list[bytes]]) -> list[Answer]:
    shares = [rounds[index::CLIENT_PROCESS_COUNT] for index in range(CLIENT_PROCESS_COUNT)]
    runs = [clients.submit(run_clients, url, share) for share in shares]
    return [answer for run in runs for answer in run.result()]


def _encodings(vision: ServiceProcess) -> list[dict[str, Any]]:
    """Returns the vision service's log lines about the images that it has encoded, in order."""
    lines = [json.loads(line) for line in vision.log.read_text().splitlines()]
    return [line for line in lines if line["event"] == "image_encoded"]


def _add_idle(
    report: Report,
    answers: Sequence[Answer],
    encodings: Sequence[Mapping[str, float]],
    goals: Mapping[str, str],
) -> None:
    pairs = list(zip(answers, encodings, strict=True))[1:]
    totals = [answer.first - answer.sent for answer, _ in pairs]
    preprocessing = [encoding["preprocess_seconds"] for _, encoding in pairs]
    rest = [total - part for total, part in zip(totals, preprocessing, strict=True)]
    tokens, tiles = answers[0].prompt_token_count, encodings[0]["tile_count"]
    figure = f"idle, {tiles} tiles, {tokens} tokens in, to the first token"
    add_times(report, figure, {"HTTP": totals}, goals.get("idle", ""))
    goal = goals.get("idle after preprocessing", "")
    add_times(report, "the same after preprocessing", {"HTTP": rest}, goal)
    add_times(report, "of it: preprocessing", {"vision": preprocessing}, "")
    forward = [encoding["forward_seconds"] for _, encoding in pairs]
    add_times(report, "of it: the vision engine", {"vision": forward}, "")


def _add_load(report: Report, answers: Sequence[Answer], goals: Mapping[str, str]) -> None:
    wall = max(answer.last for answer in answers) - min(answer.sent for answer in answers)
    rate = len(answers) / wall
    figure = f"under load, {len(answers)} requests: requests/s"
    report.add(figure, [f"{rate:.2f}", "", goals.get("load", "")], {"wall": [wall]})
    output_rate = sum(answer.output_token_count for answer in answers) / wall
    report.add("under load: output tokens/s", [f"{output_rate:.0f}", "", ""], {})
    first = [answer.first - answer.sent for answer in answers]
    add_times(report, "under load: to the first token", {"HTTP": first}, "")
    steps = [(a.last - a.first) / max(1, a.output_token_count - 1) for a in answers]
    add_times(report, "under load: per output token", {"HTTP": steps}, "")
