"""The torch engine on the CPU: against transformers, and many users against one after another."""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from llm_service.__main__ import load
from llm_service.engines.base import LLMEngine, Prompt
from llm_service.settings import Settings, TorchOptions
from models.demo import DEMO_CHECKPOINT
from tests.benchmarks import llama_cpp
from tests.benchmarks.measurement import median_ms, take_turns
from tests.benchmarks.prompts import Prompts
from tests.benchmarks.report import Report
from tests.benchmarks.shapes import released_config
from tests.benchmarks.timeline import Timeline, ask
from tests.benchmarks.transformers_model import TransformersModel, load_qwen2
from tests.random_checkpoint import tiny_config, write_random_weights, write_tokenizer
from tests.real_tokenizers import FOLDER as TOKENIZERS

THREAD_COUNT = 2
DTYPES: tuple[Literal["float32", "bfloat16"], ...] = ("float32", "bfloat16")
COMPARED = """\
Rows "ms per output token" and "ms to the first token": `generate` of transformers against our
engine, both in this process over the same weights and element type, on two threads, greedy, KV
cache on, the same prompt of 256 random tokens, 32 tokens out; in float32 both gave the same tokens,
or this table would not be here. Row "8 users": output tokens a second of 8 requests (64 tokens in,
16 out) to our engine one after another, against all at once. Row "2nd turn": the time to the first
token of a question about a new image of 3,328 embedding rows (13 tiles), against that of the next
question in the same conversation, which our engine is given with image and history as always.
"1B" is the language model of InternVL2.5-1B with random weights; "demo" the one that ships with
this repository; "host" has 24 layers as the 1B, but of width 64, so that a token's time is that of
everything but the arithmetic: scheduling, PyTorch's dispatch, sampling, the way to the caller.
Every prompt is new, so that none finds another's KV cache. Medians; all ways take turns."""


@dataclass(frozen=True)
class Sizes:
    """How much is asked: tokens, rows, users, and how often."""

    prompt_token_count: int = 256
    output_token_count: int = 32
    output_repeat_count: int = 5
    user_count: int = 8
    user_prompt_token_count: int = 64
    user_output_token_count: int = 16
    user_repeat_count: int = 3
    row_count: int = 3328
    answer_token_count: int = 8
    turn_repeat_count: int = 3


LARGE = Sizes()
# Models that take little time are asked more often.
SMALL = Sizes(output_repeat_count=9, user_repeat_count=7, turn_repeat_count=5)


@dataclass(frozen=True)
class Model:
    """A checkpoint to measure: its name in the table, how to get it, how much to ask."""

    name: str
    checkpoint: Callable[[Path], Path]
    sizes: Sizes


def run(progress: Callable[[str], None], llama_server: Path | None = None) -> Report:
    """Measures every model in both element types, and the 1B beside llama.cpp if it is given."""
    models = (
        Model("1B", write_1b, LARGE),
        Model("demo", lambda _: DEMO_CHECKPOINT, SMALL),
        Model("host", write_narrow, SMALL),
    )
    report = measure_models(models, progress)
    if llama_server is not None:
        with tempfile.TemporaryDirectory() as folder:
            subject = llama_cpp.Subject("1B", write_1b(Path(folder)), llama_server)
            llama_cpp.add_rows(report, subject, progress)
    return report


def measure_models(models: Sequence[Model], progress: Callable[[str], None]) -> Report:
    """Measures some models in both element types.

    Raises:
        ValueError: our engine's tokens differ from transformers', so that times say nothing.
    """
    torch.set_num_threads(THREAD_COUNT)
    report = Report(
        title=f"The torch engine on a CPU, {THREAD_COUNT} threads",
        compared=COMPARED,
        columns=("figure", "against", "ours", "ratio", "reach"),
    )
    for model in models:
        with tempfile.TemporaryDirectory() as folder:
            checkpoint = model.checkpoint(Path(folder))
            for dtype in DTYPES:
                name = f"{model.name}, {dtype}"
                progress(f"the engine: {name}")
                asyncio.run(_add_rows(report, name, checkpoint, dtype, model.sizes))
    return report


def write_1b(folder: Path) -> Path:
    """Writes the 1B's language model with random weights; its vision tower is cut short."""
    config = released_config("1B")
    config["vision_config"]["num_hidden_layers"] = 1
    write_tokenizer(folder, TOKENIZERS / "qwen2_5")
    write_random_weights(folder, config)
    return folder


def write_narrow(folder: Path) -> Path:
    """Writes a decoder of many layers in which no matrix product takes time."""
    config = tiny_config("qwen2", write_tokenizer(folder))
    config["llm_config"]["num_hidden_layers"] = 24
    write_random_weights(folder, config)
    return folder


async def _add_rows(
    report: Report,
    name: str,
    checkpoint: Path,
    dtype: Literal["float32", "bfloat16"],
    sizes: Sizes,
) -> None:
    settings = Settings(
        checkpoint=checkpoint,
        torch=TorchOptions(device="cpu", dtype=dtype, thread_count=THREAD_COUNT),
    )
    served, engine = load(settings)
    element = getattr(torch, dtype)
    reference = load_qwen2(checkpoint, served.config, element)
    prompts = Prompts(served.config, element, sizes.row_count)
    try:
        await _add_outputs(report, name, Contest(engine, reference, prompts, sizes), dtype)
        await _add_users(report, name, engine, prompts, sizes)
        await _add_turns(report, name, engine, prompts, sizes)
    finally:
        await engine.close()


@dataclass
class Contest:
    """Our engine and transformers, asked the same in turn."""

    engine: LLMEngine
    reference: TransformersModel
    prompts: Prompts
    sizes: Sizes

    async def timelines(self) -> dict[str, list[Timeline]]:
        """Returns the outputs of both; the n-th of each follows the same prompt."""
        count = 1 + self.sizes.output_repeat_count
        prompts = [self.prompts.text(self.sizes.prompt_token_count) for _ in range(count)]
        ours, theirs = iter(prompts), iter(prompts)
        return await take_turns(
            {"transformers": lambda: self._reference(theirs), "engine": lambda: self._engine(ours)},
            self.sizes.output_repeat_count,
        )

    async def _engine(self, prompts: Iterator[Prompt]) -> Timeline:
        return await ask(self.engine, next(prompts), self.sizes.output_token_count)

    async def _reference(self, prompts: Iterator[Prompt]) -> Timeline:
        # Blocks this loop, on which nothing else runs.
        return self.reference.generate([next(prompts).token_ids], self.sizes.output_token_count)


async def _add_outputs(report: Report, name: str, contest: Contest, dtype: str) -> None:
    timelines = await contest.timelines()
    theirs, ours = ([line.token_ids for line in lines] for lines in timelines.values())
    if dtype == "float32" and ours != theirs:
        raise ValueError(f"{name}: the engine's tokens differ from transformers'")
    per_token = {w: [line.seconds_per_token for line in ls] for w, ls in timelines.items()}
    _add_times(report, f"{name}: ms per output token", per_token, "<= 0.9")
    first = {w: [line.first_token_seconds for line in ls] for w, ls in timelines.items()}
    tokens = contest.sizes.prompt_token_count
    _add_times(report, f"{name}: ms to the first token, {tokens} tokens in", first, "")


async def _add_users(
    report: Report, name: str, engine: LLMEngine, prompts: Prompts, sizes: Sizes
) -> None:
    async def in_turn() -> float:
        started = time.perf_counter()
        for prompt in _user_prompts(prompts, sizes):
            await ask(engine, prompt, sizes.user_output_token_count)
        return time.perf_counter() - started

    async def at_once() -> float:
        started = time.perf_counter()
        asked = _user_prompts(prompts, sizes)
        await asyncio.gather(*(ask(engine, p, sizes.user_output_token_count) for p in asked))
        return time.perf_counter() - started

    # Both warm each other up: a run of the large model takes half a minute.
    seconds = await take_turns(
        {"at once": at_once, "in turn": in_turn}, sizes.user_repeat_count, warm_up_count=0
    )
    token_count = sizes.user_count * sizes.user_output_token_count
    alone, together = (
        token_count / statistics.median(seconds[way]) for way in ("in turn", "at once")
    )
    cells = [f"{alone:.1f}", f"{together:.1f}", f"{together / alone:.2f}", ">= 3"]
    report.add(f"{name}: tokens/s of {sizes.user_count} users", cells, seconds)


def _user_prompts(prompts: Prompts, sizes: Sizes) -> list[Prompt]:
    return [prompts.text(sizes.user_prompt_token_count) for _ in range(sizes.user_count)]


async def _add_turns(
    report: Report, name: str, engine: LLMEngine, prompts: Prompts, sizes: Sizes
) -> None:
    seconds: dict[str, list[float]] = {"first turn": [], "2nd turn": []}
    for _ in range(sizes.turn_repeat_count):
        prompt = prompts.first_turn(sizes.row_count)
        first = await ask(engine, prompt, sizes.answer_token_count)
        second = await ask(engine, prompts.next_turn(prompt, first.token_ids), 1)
        seconds["first turn"].append(first.first_token_seconds)
        seconds["2nd turn"].append(second.first_token_seconds)
    figure = f"{name}: ms to the first token, 2nd turn of {sizes.row_count} rows"
    _add_times(report, figure, seconds, "<= 0.10")


def _add_times(report: Report, figure: str, seconds: dict[str, list[float]], reach: str) -> None:
    """Adds a row of two ways: what ours is held against, then ours."""
    against, ours = (median_ms(values) for values in seconds.values())
    cells = [f"{against:.1f}", f"{ours:.1f}", f"{ours / against:.2f}", reach]
    report.add(figure, cells, seconds)
