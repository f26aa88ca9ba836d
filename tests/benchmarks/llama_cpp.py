"""The torch engine on the CPU beside llama.cpp, over the same weights."""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from gguf import GGMLQuantizationType

from llm_service.__main__ import load
from llm_service.engines.base import LLMEngine, Prompt
from llm_service.settings import Settings, TorchOptions
from tests.benchmarks.gguf_file import write_gguf
from tests.benchmarks.llama_server import Completion, LlamaServer, running, version
from tests.benchmarks.measurement import median_ms, take_turns
from tests.benchmarks.prompts import Prompts
from tests.benchmarks.report import Report
from tests.benchmarks.timeline import ask

THREAD_COUNT = 2
THEIRS, OURS = "llama.cpp", "engine"
COMPARED = """\


Rows "beside llama.cpp": `llama-server`, a process of its own, reads the same weights from a GGUF
file of the type that the row names; our engine runs in this process. As many threads, greedy, the
same prompts of random token ids, and none finds another's KV cache. llama.cpp's times are those by
its server's own clock, without HTTP; ours are from asking to having the token. "tokens/s of n
sequences" are the output tokens of all that generate side by side. Medians; both take turns."""


@dataclass(frozen=True)
class Pair:
    """Two that are compared: our engine with some options, and llama.cpp with a type of file."""

    name: str
    options: TorchOptions
    element: GGMLQuantizationType


PAIRS = (
    Pair("bfloat16", TorchOptions(dtype="bfloat16"), GGMLQuantizationType.BF16),
    Pair("float32", TorchOptions(dtype="float32"), GGMLQuantizationType.BF16),
    Pair("int8", TorchOptions(quantization="int8"), GGMLQuantizationType.Q8_0),
)


@dataclass(frozen=True)
class Load:
    """What is asked at once, how often, and what of it becomes a row.

    Attributes:
        warm_up_count: runs before those that count.
        tells_reading: whether it has a row of the milliseconds to read the prompt.
        tells_writing: whether it has one of the milliseconds, or tokens a second, of the output.
    """

    sequence_count: int
    prompt_token_count: int
    output_token_count: int
    repeat_count: int
    warm_up_count: int = 1
    tells_reading: bool = False
    tells_writing: bool = True


LOADS = (
    Load(1, 32, 32, repeat_count=7),
    Load(1, 512, 2, repeat_count=5, tells_reading=True, tells_writing=False),
    # All is warm by now, and a run takes half a minute.
    Load(1, 3383, 24, repeat_count=3, warm_up_count=0, tells_reading=True),
    Load(4, 32, 32, repeat_count=5),
    Load(8, 32, 32, repeat_count=5),
)


@dataclass(frozen=True)
class Subject:
    """A checkpoint, the program that our engine is compared with, and how."""

    name: str
    checkpoint: Path
    program: Path
    pairs: Sequence[Pair] = PAIRS
    loads: Sequence[Load] = LOADS


def add_rows(report: Report, subject: Subject, progress: Callable[[str], None]) -> None:
    """Measures all pairs.

    Raises:
        RuntimeError: llama-server does not start.
        ValueError: the two seldom give the same token, so that they run different models.
    """
    torch.set_num_threads(THREAD_COUNT)
    report.compared += COMPARED
    report.options += f" --llama-server {subject.program.name}"
    report.facts["llama.cpp"] = asyncio.run(version(subject.program))
    for pair in subject.pairs:
        figure = f"{subject.name}, {pair.name} beside llama.cpp's {pair.element.name}"
        progress(f"the engine: {figure}")
        asyncio.run(_add_pair(report, subject, pair, figure))


async def _add_pair(report: Report, subject: Subject, pair: Pair, figure: str) -> None:
    file = subject.checkpoint / f"{subject.name}-{pair.element.name}.gguf"
    if not file.is_file():
        write_gguf(subject.checkpoint, file, pair.element)
    options = pair.options.model_copy(update={"device": "cpu", "thread_count": THREAD_COUNT})
    served, engine = load(Settings(checkpoint=subject.checkpoint, torch=options))
    try:
        async with running(subject.program, file, THREAD_COUNT) as server:
            report.facts[file.name] = f"`{server.command}`"
            contest = Contest(engine, server, Prompts(served.config, torch.float32, 0))
            for asked in subject.loads:
                _add_load(report, figure, asked, await contest.answers(asked))
            contest.require_one_model(figure)
    finally:
        await engine.close()


Answers = dict[str, list[list[Completion]]]


@dataclass
class Contest:
    """Our engine and llama.cpp, asked the same in turn.

    Attributes:
        agreements: of each prompt so far, whether both went on with the same token.
    """

    engine: LLMEngine
    server: LlamaServer
    prompts: Prompts
    agreements: list[bool] = field(default_factory=list)

    async def answers(self, asked: Load) -> Answers:
        """Returns what each way answered in each run; the n-th of each had the same prompts."""
        runs = [
            [self.prompts.text(asked.prompt_token_count) for _ in range(asked.sequence_count)]
            for _ in range(asked.warm_up_count + asked.repeat_count)
        ]
        for_them, for_us = iter(runs), iter(runs)
        length = asked.output_token_count
        answers = await take_turns(
            {
                THEIRS: lambda: _all_at_once(self._theirs, next(for_them), length),
                OURS: lambda: _all_at_once(self._ours, next(for_us), length),
            },
            asked.repeat_count,
            asked.warm_up_count,
        )
        firsts = ([a.token_ids[0] for a in sum(answers[way], [])] for way in answers)
        self.agreements += [one == other for one, other in zip(*firsts, strict=True)]
        return answers

    def require_one_model(self, name: str) -> None:
        """Raises ValueError where the two seldom go on with the same token.

        Fewer bits change a token now and then, other weights nearly all of them.
        """
        if sum(self.agreements) < len(self.agreements) / 2:
            raise ValueError(
                f"{name}: {sum(self.agreements)} of {len(self.agreements)} answers begin alike;"
                " of one model at least half would, so the two run different ones"
            )

    async def _theirs(self, prompt: Prompt, token_count: int) -> Completion:
        return await self.server.complete(prompt.token_ids, token_count)

    async def _ours(self, prompt: Prompt, token_count: int) -> Completion:
        timeline = await ask(self.engine, prompt, token_count)
        return Completion(
            timeline.token_ids, timeline.first_token_seconds, timeline.seconds_per_token
        )


async def _all_at_once(
    way: Callable[[Prompt, int], Awaitable[Completion]], prompts: Sequence[Prompt], length: int
) -> list[Completion]:
    return await asyncio.gather(*(way(prompt, length) for prompt in prompts))


def _add_load(report: Report, name: str, asked: Load, answers: Answers) -> None:
    tokens = f"{asked.prompt_token_count:,} tokens"
    if asked.tells_reading:
        seconds = {way: [run[0].prompt_seconds for run in runs] for way, runs in answers.items()}
        _add_times(report, f"{name}: ms to read {tokens}", seconds)
    if asked.tells_writing and asked.sequence_count == 1:
        seconds = {way: [run[0].seconds_per_token for run in runs] for way, runs in answers.items()}
        _add_times(report, f"{name}: ms per output token after {tokens}", seconds)
    if asked.tells_writing and asked.sequence_count > 1:
        seconds = {way: [_seconds_per_token(run) for run in runs] for way, runs in answers.items()}
        _add_rates(report, f"{name}: tokens/s of {asked.sequence_count} sequences", seconds)


def _seconds_per_token(crowd: Sequence[Completion]) -> float:
    """Returns the time that a token of any of them takes."""
    return 1 / sum(1 / answer.seconds_per_token for answer in crowd)


def _add_times(report: Report, figure: str, seconds: dict[str, list[float]]) -> None:
    theirs, ours = median_ms(seconds[THEIRS]), median_ms(seconds[OURS])
    report.add(figure, [f"{theirs:.1f}", f"{ours:.1f}", f"{ours / theirs:.2f}", "<= 1"], seconds)


def _add_rates(report: Report, figure: str, seconds: dict[str, list[float]]) -> None:
    theirs, ours = (1 / statistics.median(seconds[way]) for way in (THEIRS, OURS))
    report.add(figure, [f"{theirs:.1f}", f"{ours:.1f}", f"{ours / theirs:.2f}", ">= 1"], seconds)
