"""The two services on one machine without a GPU, with other options each: one user and several."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from statistics import median
from unittest import mock

from gateway.local.stack import Stack
from tests.benchmarks.chat_clients import Answer, Question, run_clients
from tests.benchmarks.report import Report
from tests.benchmarks.shapes import open_shape

TEXT = "What is shown in this picture?"
# Of 8 users of a large model on one thread the last waits for minutes.
ANSWER_SECONDS = 3600.0
COMPARED = """\
The three services on one machine, asked over HTTP: each user sends a new square picture, and reads
all tokens of the answer. The stacks differ in options of both model services, or in variables; they
take turns, and the first request to each is not counted. Seconds, medians of all answers; output
tokens of all users together, over the time from the first request sent to the last answer."""


@dataclass(frozen=True)
class Variant:
    """A stack to measure: options of both model services, and variables of all three."""

    name: str
    options: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Sizes:
    """How much is asked, and how often.

    Attributes:
        edge: of the pictures, in pixels; 448 are one tile, 896 five.
        token_count: of each answer.
        user_counts: so many ask at once.
        round_count: of each number of users.
    """

    edge: int = 448
    token_count: int = 32
    user_counts: Sequence[int] = (1, 2, 8)
    round_count: int = 2


# To compare others, of --torch.dtype or of OMP_WAIT_POLICY say, name them here.
VARIANTS = tuple(
    Variant(f"{thread_count} threads each", ("--torch.thread-count", str(thread_count)))
    for thread_count in (1, 2)
)


def run(progress: Callable[[str], None]) -> Report:
    """Measures the 1B's shape with random weights."""
    with ExitStack() as exits:
        checkpoint = exits.enter_context(open_shape(None, "1B", "cpu", tiny=False))
        stacks = {each.name: exits.enter_context(open_stack(checkpoint, each)) for each in VARIANTS}
        return measure_stacks(checkpoint.name, stacks, Sizes(), progress)


@contextmanager
def open_stack(checkpoint: Path, variant: Variant) -> Iterator[Stack]:
    """Yields a variant's services.

    Raises:
        StartError: one did not start.
    """
    with tempfile.TemporaryDirectory() as folder:
        stack = Stack(
            checkpoint,
            Path(folder),
            service_arguments=variant.options,
            gateway_arguments=("--request-seconds", str(ANSWER_SECONDS)),
        )
        try:
            with mock.patch.dict(os.environ, variant.environment):
                stack.start()
            yield stack
        finally:
            stack.stop()


def measure_stacks(
    model: str, stacks: Mapping[str, Stack], sizes: Sizes, progress: Callable[[str], None]
) -> Report:
    """Asks each variant's services in turn.

    Raises:
        aiohttp.ClientError, ValueError: a request failed.
    """
    report = Report(
        f"Threads of the two services, {model}, {sizes.edge} pixels",
        COMPARED,
        ("services, users", "first token", "whole answer", "output tokens/s"),
    )
    question = Question(model, TEXT, sizes.edge, sizes.edge, sizes.token_count)
    bodies = map(question.body, count())
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as clients:
        for stack in stacks.values():
            _ask(clients, stack, [next(bodies)])
        for user_count in sizes.user_counts:
            progress(f"{user_count} users")
            rounds: dict[str, list[list[Answer]]] = {name: [] for name in stacks}
            for _ in range(sizes.round_count):
                for name, stack in stacks.items():
                    asked = [next(bodies) for _ in range(user_count)]
                    rounds[name].append(_ask(clients, stack, asked))
            for name in stacks:
                _add(report, f"{name}, {user_count}", rounds[name])
    return report


def _ask(clients: Executor, stack: Stack, bodies: Sequence[bytes]) -> list[Answer]:
    users = [[body] for body in bodies]
    return clients.submit(run_clients, stack.url, users, ANSWER_SECONDS).result()


def _add(report: Report, case: str, rounds: Sequence[Sequence[Answer]]) -> None:
    answers = [answer for each in rounds for answer in each]
    first = [answer.first - answer.sent for answer in answers]
    whole = [answer.last - answer.sent for answer in answers]
    spans = [max(a.last for a in each) - min(a.sent for a in each) for each in rounds]
    rates = [
        sum(answer.output_token_count for answer in each) / span
        for each, span in zip(rounds, spans, strict=True)
    ]
    cells = [f"{median(first):.2f}", f"{median(whole):.2f}", f"{median(rates):.1f}"]
    report.add(case, cells, {"first": first, "whole": whole, "spans": spans})
