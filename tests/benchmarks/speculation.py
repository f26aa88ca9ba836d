"""What drafts make of the time of a token: where an answer copies, where it does not, at worst."""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain

import torch

from llm_service.engines.base import DraftTotals, Prompt
from llm_service.engines.torch.decoder import Layer
from llm_service.engines.torch.drafts import LOOKUP_LENGTH
from llm_service.engines.torch.engine import TorchEngine
from tests.benchmarks.measurement import take_turns
from tests.benchmarks.prompts import Prompts
from tests.benchmarks.report import Report
from tests.benchmarks.timeline import Timeline, ask

COLUMNS = ("figure", "none", "drafts", "tokens/s", "accepted", "reach")
COMPARED = """\
Milliseconds from one token to the next of a sequence while all of a batch are written; the median
of some batches, by an engine without drafts and by one that makes up to {count}, in turn. Then how
many times as many tokens a second the latter writes, and which share of its drafts was right.
"others": random weights, prompts of random tokens, at temperature 1, so that nothing repeats itself
(the most probable tokens of such a model soon do). "copying": greedy; what attention and the
feed-forward layers add to the stream is set to 0 in both engines, so that the next token follows
from the last one alone, at the full cost of the shape; the prompt holds the whole answer. "wrong":
likewise, but after each {run} tokens of the answer the prompt holds what does not follow them, so
that a draft is wrong wherever one is made."""


@dataclass(frozen=True)
class Sizes:
    """How much is asked."""

    answer_token_count: int = 200
    # By batch size. Long prompts of many would be read for longer than the first answers take.
    prompt_token_counts: Mapping[int, int] = field(
        default_factory=lambda: {1: 3383, 8: 1000, 32: 400}
    )
    repeat_count: int = 3


async def measure(
    engines: Mapping[str, TorchEngine], prompts: Prompts, sizes: Sizes, draft_count: int
) -> Report:
    """Measures an engine without drafts and one with them; their weights are others afterwards."""
    compared = COMPARED.format(count=draft_count, run=LOOKUP_LENGTH)
    report = Report("speculation, milliseconds a token", compared, COLUMNS)
    contest = Contest(engines, prompts, sizes, report)
    for size in sizes.prompt_token_counts:
        await contest.add("others", size, ">= 0.97")
    for engine in engines.values():
        _make_chain(engine)
    await contest.add("wrong", 1, ">= 0.97")
    for size in sizes.prompt_token_counts:
        await contest.add("copying", size, ">= 1.5")
    return report


@dataclass(frozen=True)
class Contest:
    """The engines "none" and "drafts" on the same weights, and what is found of them."""

    engines: Mapping[str, TorchEngine]
    prompts: Prompts
    sizes: Sizes
    report: Report

    async def add(self, task: str, size: int, reach: str) -> None:
        """Adds a row: so many at a time of a task."""
        prompt_token_count = self.sizes.prompt_token_counts[size]
        temperature = float(task == "others")
        rounds = [
            await asyncio.gather(*(self._prompt(task, prompt_token_count) for _ in range(size)))
            for _ in range(1 + self.sizes.repeat_count)
        ]
        before = self.engines["drafts"].load().drafts
        ways = {
            way: partial(self._answers, engine, iter(rounds), temperature)
            for way, engine in self.engines.items()
        }
        answers = await take_turns(ways, self.sizes.repeat_count)
        seconds = {way: list(map(_seconds_per_token, each)) for way, each in answers.items()}
        none, drafts = (statistics.median(values) for values in seconds.values())
        cells = [f"{none * 1e3:.3f}", f"{drafts * 1e3:.3f}", f"{none / drafts:.2f}"]
        cells += [_accepted(before, self.engines["drafts"].load().drafts), reach]
        self.report.add(f"{task}, batch {size}", cells, seconds)
        print(task, size, *cells, flush=True)

    async def _answers(
        self, engine: TorchEngine, rounds: Iterator[Sequence[Prompt]], temperature: float
    ) -> list[Timeline]:
        count = self.sizes.answer_token_count
        asked = (ask(engine, prompt, count, temperature) for prompt in next(rounds))
        return await asyncio.gather(*asked)

    async def _prompt(self, task: str, token_count: int) -> Prompt:
        """Returns a prompt whose answer is a task's."""
        if task == "others":
            return self.prompts.text(token_count)
        run = await self._run()
        held = run if task == "copying" else self._contradicted(run)
        rest = self.prompts.text(max(1, token_count - len(held) - LOOKUP_LENGTH))
        return replace(rest, token_ids=[*held, *rest.token_ids, *run[:LOOKUP_LENGTH]])

    def _contradicted(self, run: list[int]) -> list[int]:
        """Returns each part of a run with what does not follow it."""
        wrong = self.prompts.text(len(run)).token_ids
        parts = zip(*(run[first:] for first in range(LOOKUP_LENGTH)), wrong, strict=False)
        return list(chain.from_iterable(parts))

    async def _run(self) -> list[int]:
        """Returns tokens each of which follows from the one before, where the weights are such."""
        prompt = self.prompts.text(1)
        line = await ask(
            self.engines["none"], prompt, LOOKUP_LENGTH + self.sizes.answer_token_count
        )
        return [*prompt.token_ids, *line.token_ids]


def _seconds_per_token(lines: Sequence[Timeline]) -> float:
    """Returns those of one sequence while all of them are being written."""
    begin = max(line.arrivals[0] for line in lines)
    end = min(line.arrivals[-1] for line in lines)
    count = sum(begin < moment <= end for line in lines for moment in line.arrivals)
    return (end - begin) * len(lines) / count


def _accepted(before: DraftTotals | None, after: DraftTotals | None) -> str:
    assert before is not None
    assert after is not None
    drafted = after.drafted_token_count - before.drafted_token_count
    accepted = after.accepted_token_count - before.accepted_token_count
    return f"{accepted / drafted:.0%} of {drafted}" if drafted else "none"


def _make_chain(engine: TorchEngine) -> None:
    with torch.inference_mode():
        for layer in engine._runner._decoder.layers:
            assert isinstance(layer, Layer)
            layer.attention.output.weight.zero_()
            layer.feed_forward.down.weight.zero_()
