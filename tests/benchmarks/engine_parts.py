"""What the CUDA benchmark measures of one engine in its own process, and of transformers."""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass
from itertools import cycle
from threading import Thread

import torch

from llm_service.checkpoint import LLMConfig
from llm_service.engines.base import LLMEngine, Prompt
from tests.benchmarks.crossover.figures import percentile_ms
from tests.benchmarks.crowd import Crowd, crowd
from tests.benchmarks.host_profile import DeviceTrace, StackSampler, warm_up_trace
from tests.benchmarks.prompts import Prompts
from tests.benchmarks.report import Report
from tests.benchmarks.timeline import ask
from tests.benchmarks.transformers_model import random_llama
from tests.benchmarks.vision_cuda import Bench

COLUMNS = ("figure", "p50", "p99", "reach")
REPEATED, NEW = "a length repeated", "lengths not seen before"
LINE_COUNT = 10
DECODE_COMPARED = """\
Sequences that generate side by side, each after a prompt of as many random tokens as the row says;
a step is the time between two tokens of one of them, once all have their first. No prompt shares a
token block with another."""
PREFILL_COMPARED = """\
From asking to the first token, one request at a time, each of other random tokens: prompts of one
length, and in turn with them prompts around it (seeded, the same on average), of which no two have
the same length. The latter is what people send."""
TURNS_COMPARED = """\
The time to the first token of a question about a new image (virtual rows), and of the next question
in the same conversation, which comes with the image and the history as always. Questions have one
length, and in turn with them others (seeded), of which no two are alike."""
TRANSFORMERS_COMPARED = """\
`generate` of transformers on a Llama of the same shape with random weights: SDPA, its default KV
cache, greedy; prompts of random tokens of the same length in one batch."""
OFFLOAD_COMPARED = """\
Conversations about an image each (virtual rows), more of them than the KV cache holds. The time to
the first token of each first question; of the third one at once, when the prefix is in the KV
cache; and of the fourth one after all others, when the host cache alone has it. A hit's cost is
what the last takes longer than the one before: both compute fewer tokens than a block has."""
BESIDE_COMPARED = """\
The time between two tokens of sequences that generate side by side: alone; beside further
questions, one conversation after the other, whose prefixes are in the KV cache; beside such whose
prefixes come from the host cache, for which as much goes there."""
HOST_COMPARED = """\
What a decode step costs the host, from a trace of all calls to the GPU (which slows the step down:
its undisturbed time is in the first row). "GPU busy" is the sum of its kernels and copies; "waits"
are the engine's synchronising calls; the host's own time is what remains of the traced step."""
LINES_COMPARED = """\
Where the engine's threads were, looked at 2,000 times a second: the innermost line of the LLM
service and the share of the looks that saw it."""


@dataclass(frozen=True)
class Sizes:
    """How much the parts ask for."""

    prompt_token_count: int = 3383
    prefill_token_counts: tuple[int, ...] = (1300, 3383)
    batch_sizes: tuple[int, ...] = (1, 8, 32)
    host_batch_sizes: tuple[int, ...] = (1, 32)
    # Enough for a window of steps, and for those that wait while the last prompts are read.
    max_tokens: int = 4000
    window_seconds: float = 1.0
    trace_seconds: float = 0.2
    length_pair_count: int = 10
    row_count: int = 3328
    question_token_count: int = 150
    answer_token_count: int = 16
    reference_batch_sizes: tuple[int, ...] = (1, 8)
    reference_token_count: int = 24
    reference_repeat_count: int = 4
    # Rows, and how many conversations about as many: more than the offload part's KV cache holds.
    conversations: tuple[tuple[int, int], ...] = ((3328, 24), (5 * 3328, 6))
    listener_count: int = 8

    @property
    def largest_row_count(self) -> int:
        """The most rows of a prompt."""
        return max(self.row_count, *(row_count for row_count, _ in self.conversations))


@dataclass(frozen=True)
class Subject:
    """An engine that is measured: its prompts, its threads, what to reach, a tower beside it."""

    engine: LLMEngine
    prompts: Prompts
    threads: Collection[Thread]
    sizes: Sizes
    goals: Mapping[str, str]
    tower: Bench


async def decode(subject: Subject) -> list[Report]:
    """Measures steps of several batch sizes."""
    sizes = subject.sizes
    report = Report("decode, milliseconds a step", DECODE_COMPARED, COLUMNS)
    for batch_size in sizes.batch_sizes:
        async with _crowd(subject, batch_size) as running:
            steps = await running.watch(sizes.window_seconds)
        figure = f"batch {batch_size}, {sizes.prompt_token_count} tokens in each"
        add_times(report, figure, {"engine": steps}, subject.goals.get(f"decode {batch_size}", ""))
    return [report]


async def prefill(subject: Subject) -> list[Report]:
    """Measures the time to the first token of a text, of one length and of new ones."""
    report = Report("prefill, milliseconds to the first token", PREFILL_COMPARED, COLUMNS)
    for count in subject.sizes.prefill_token_counts:
        seconds: dict[str, list[float]] = {REPEATED: [], NEW: []}
        for length in subject.prompts.lengths(count, 1 + subject.sizes.length_pair_count):
            for name, token_count in ((REPEATED, count), (NEW, length)):
                timeline = await ask(subject.engine, subject.prompts.text(token_count), 1)
                seconds[name].append(timeline.first_token_seconds)
        warm = {name: values[2:] for name, values in seconds.items()}
        goal = subject.goals.get(f"prefill {count}", "")
        for name, values in warm.items():
            add_times(report, f"{count} text tokens, {name}", {"engine": values}, goal)
        add_ratio(report, f"{count}: new lengths over the repeated one", warm[NEW], warm[REPEATED])
    return [report]


async def turns(subject: Subject) -> list[Report]:
    """Measures the first and the second turn about the same image."""
    sizes, prompts = subject.sizes, subject.prompts
    seconds: dict[str, list[float]] = {REPEATED: [], NEW: [], "second turn": []}
    for length in prompts.lengths(sizes.question_token_count, 1 + sizes.length_pair_count):
        repeated = prompts.first_turn(sizes.row_count, sizes.question_token_count)
        timeline = await ask(subject.engine, repeated, sizes.answer_token_count)
        seconds[REPEATED].append(timeline.first_token_seconds)
        new = prompts.first_turn(sizes.row_count, length)
        first = await ask(subject.engine, new, sizes.answer_token_count)
        seconds[NEW].append(first.first_token_seconds)
        second = await ask(subject.engine, prompts.next_turn(new, first.token_ids), 1)
        seconds["second turn"].append(second.first_token_seconds)
    report = Report(
        f"turns about {sizes.row_count} rows, milliseconds to the first token",
        TURNS_COMPARED,
        COLUMNS,
    )
    warm = {name: values[2:] for name, values in seconds.items()}
    add_times(report, f"first turn, {REPEATED}", {"engine": warm[REPEATED]}, "")
    add_times(report, f"first turn, {NEW}", {"engine": warm[NEW]}, "")
    add_times(report, "second turn", {"engine": warm["second turn"]}, "")
    add_ratio(report, "first turn: new lengths over the repeated one", warm[NEW], warm[REPEATED])
    add_ratio(report, "second over first", warm["second turn"], warm[NEW], "<= 0.10")
    return [report]


async def offload(subject: Subject) -> list[Report]:
    """Measures what a prefix in host memory costs who asks for it, and all others."""
    report = Report("host cache, milliseconds to the first token", OFFLOAD_COMPARED, COLUMNS)
    few, *larger = subject.sizes.conversations
    conversations = await _add_hits(subject, report, *few)
    beside = await _beside(subject, conversations)
    for row_count, count in larger:
        await _add_hits(subject, report, row_count, count)
    return [report, beside]


async def _add_hits(
    subject: Subject, report: Report, row_count: int, conversation_count: int
) -> list[Prompt]:
    """Adds the rows of conversations about as many rows; returns their last prompts."""
    first, cached, conversations = [], [], []
    for _ in range(conversation_count):
        prompt = subject.prompts.first_turn(row_count)
        first.append(await _answered(subject, prompt))
        second = subject.prompts.next_turn(prompt, [])
        await _answered(subject, second)
        conversations.append(subject.prompts.next_turn(second, []))
        cached.append(await _answered(subject, conversations[-1]))
    before = _loaded_token_count(subject)
    conversations = [subject.prompts.next_turn(prompt, []) for prompt in conversations]
    loaded = [await _answered(subject, prompt) for prompt in conversations]
    loaded_count = (_loaded_token_count(subject) - before) / conversation_count
    cost = [each - percentile_ms(cached, 50) / 1e3 for each in loaded]
    goal = subject.goals.get(f"hit {row_count}", "")
    name = f"{row_count} rows"
    add_times(report, f"{name}, first turn", {"engine": first[1:]}, "")
    add_times(report, f"{name}, from the KV cache", {"engine": cached[1:]}, "")
    figure = f"{name}, {loaded_count:.0f} tokens from the host cache"
    add_times(report, figure, {"engine": loaded}, "")
    add_times(report, f"{name}, a hit's cost", {"engine": cost}, goal)
    add_ratio(report, f"{name}, from the host cache over first", loaded, first[1:], "<= 0.15")
    return conversations


async def _beside(subject: Subject, conversations: Sequence[Prompt]) -> Report:
    report = Report("decode beside the host cache, milliseconds a step", BESIDE_COMPARED, COLUMNS)
    sizes, seconds = subject.sizes, subject.sizes.window_seconds
    few = conversations[-1:]
    async with _crowd(subject, sizes.listener_count) as running:
        add_times(report, "alone", {"engine": await running.watch(seconds)}, "")
        for name, asked in (("the KV cache", few), ("the host cache", conversations)):
            await _answered(subject, asked[0])
            async with _conversing(subject, asked) as counts:
                steps = await running.watch(2 * seconds)
            figure = f"beside {sum(counts) / 2 / seconds:.0f} turns a second from {name}"
            add_times(report, figure, {"engine": steps}, "")
    return report


@asynccontextmanager
async def _conversing(subject: Subject, prompts: Sequence[Prompt]) -> AsyncIterator[list[int]]:
    """Asks further questions, one after the other; yields a list that grows by 1 with each."""
    counts: list[int] = []

    async def converse() -> None:
        for prompt in cycle(prompts):
            await _answered(subject, subject.prompts.next_turn(prompt, []))
            counts.append(1)

    task = asyncio.create_task(converse())
    try:
        yield counts
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def _answered(subject: Subject, prompt: Prompt) -> float:
    return (await ask(subject.engine, prompt, 1)).first_token_seconds


def _loaded_token_count(subject: Subject) -> int:
    cache = subject.engine.load().host_cache
    return 0 if cache is None else cache.loaded_token_count


async def host(subject: Subject) -> list[Report]:
    """Measures what a decode step costs the host."""
    columns = ("milliseconds a step", *(f"batch {n}" for n in subject.sizes.host_batch_sizes))
    table = Report("the host's part of a decode step", HOST_COMPARED, columns)
    lines = Report("the host's lines", LINES_COMPARED, ("batch and line", "share"))
    warm_up_trace()
    costs = []
    for batch_size in subject.sizes.host_batch_sizes:
        async with _crowd(subject, batch_size) as running:
            steps = await running.watch(subject.sizes.window_seconds / 2)
            with StackSampler(subject.threads) as sampler:
                await running.watch(subject.sizes.window_seconds / 2)
            with DeviceTrace() as trace:
                traced = await running.watch(subject.sizes.trace_seconds)
        costs.append(_step_costs(steps, traced, trace))
        for line, share in sampler.shares(LINE_COUNT):
            lines.add(f"{batch_size}: {line}", [f"{share:.1%}"], {})
    for figure in costs[0]:
        table.add(figure, [f"{cost[figure]:.3f}" for cost in costs], {})
    return [table, lines]


def _crowd(subject: Subject, size: int) -> AbstractAsyncContextManager[Crowd]:
    sizes = subject.sizes
    prompts = [subject.prompts.text(sizes.prompt_token_count) for _ in range(size)]
    return crowd(subject.engine, prompts, sizes.max_tokens)


def _step_costs(
    steps: Sequence[float], traced: Sequence[float], trace: DeviceTrace
) -> dict[str, float]:
    """Returns the rows of the host's table."""
    step = statistics.mean(traced)
    # The trace is as long as its steps, but for less than one at either end.
    totals = {name: value / len(traced) for name, value in trace.totals().items()}
    return {
        "step, not traced": statistics.mean(steps) * 1e3,
        "step, traced": step * 1e3,
        "GPU busy": totals["kernels"] * 1e3,
        "host waits for the GPU": totals["waits"] * 1e3,
        "host launches work": totals["launches"] * 1e3,
        "host copies": totals["copies"] * 1e3,
        "host's own time, launches included": (step - totals["waits"]) * 1e3,
        "launches (count)": totals["launch count"],
    }


def transformers(
    config: LLMConfig, device: torch.device, dtype: torch.dtype, sizes: Sizes
) -> list[Report]:
    """Measures decoding and prefill of the same shape by transformers."""
    model = random_llama(config, device, dtype)
    prompts = Prompts(config, dtype, 0)
    report = Report("transformers, milliseconds", TRANSFORMERS_COMPARED, COLUMNS)
    for batch_size in sizes.reference_batch_sizes:
        first, steps = [], []
        for _ in range(1 + sizes.reference_repeat_count):
            batch = [prompts.text(sizes.prompt_token_count).token_ids for _ in range(batch_size)]
            timeline = model.generate(batch, sizes.reference_token_count)
            first.append(timeline.first_token_seconds)
            steps.append(timeline.seconds_per_token)
        name = f"batch {batch_size}, {sizes.prompt_token_count} tokens in each"
        add_times(report, f"{name}: to the first token", {"transformers": first[1:]}, "")
        add_times(report, f"{name}: a step", {"transformers": steps[1:]}, "")
    return [report]


def add_times(
    report: Report, figure: str, seconds: Mapping[str, Sequence[float]], goal: str
) -> None:
    """Adds a row of one way in milliseconds: p50, p99, what to reach."""
    (values,) = seconds.values()
    cells = [f"{percentile_ms(values, percent):.2f}" for percent in (50, 99)]
    report.add(figure, [*cells, goal], seconds)


def add_ratio(
    report: Report,
    figure: str,
    seconds: Sequence[float],
    others: Sequence[float],
    goal: str = "<= 1.03",
) -> None:
    """Adds a row of two ways: p50 over p50, p99 over p99, what to reach."""
    ratios = [percentile_ms(seconds, one) / percentile_ms(others, one) for one in (50, 99)]
    report.add(figure, [*(f"{ratio:.3f}" for ratio in ratios), goal], {})
