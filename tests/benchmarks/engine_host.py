"""What a decode step costs the engine's thread, by stage: with a device that does nothing, or CUDA.

`python -m tests.benchmarks.engine_host --out DIR [--device cuda] [--shape 1B] [--batch 1 64 ...]`
Nobody else wants the interpreter meanwhile: outputs go to callers that take no time.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast
from unittest.mock import patch

import torch

from llm_service.__main__ import load
from llm_service.checkpoint import LLMConfig
from llm_service.engines.base import Request
from llm_service.engines.steps import Message
from llm_service.engines.torch import launch, model_runner, step_graphs
from llm_service.engines.torch.engine import TorchEngine
from llm_service.engines.torch.kernels.base import BatchLayout
from llm_service.engines.torch.kernels.torch_kernels import TorchKernels
from llm_service.engines.torch.mask_pool import MaskPool
from llm_service.engines.torch.model_runner import ModelRunner
from llm_service.engines.torch.scheduler import Scheduler
from llm_service.engines.torch.step_inputs import StepInputs
from llm_service.engines.torch.step_outputs import StepOutputs
from llm_service.sampling import Guide, SamplingParams
from llm_service.settings import Settings, TorchOptions
from protos.process.settings import GIB
from tests.benchmarks.prompts import Prompts
from tests.benchmarks.report import Report, ReportBook
from tests.benchmarks.shapes import FAMILIES, open_shape
from tests.benchmarks.stage_clock import StageClock, Stages
from tests.random_checkpoint import write_random_checkpoint

TITLE = "A decode step on the host, by stage"
COMPARED = """\
Microseconds a step of the engine's thread, means over all steps of the window: sequences that
generate side by side, each after a prompt of random tokens. Nobody else wants the interpreter:
outputs go to callers that take no time. "Waits" is where the thread waits for the device,
"host" the step without that. "CPU" is the thread's own time, and then that of each stage, without
that of the stages within it: of the step itself, of scheduling, of the inputs, and so on. The clock
itself takes some microseconds a step."""
WAITS = "waits"
STAGES: Stages = {
    "step": (TorchEngine, "_step"),
    "schedule": (Scheduler, "schedule"),
    "inputs": (StepInputs, "of"),
    "run": (ModelRunner, "run"),
    "replay": (step_graphs.DecodeGraphs, "run"),
    "masks": (model_runner, "await_masks"),
    "sample": (model_runner, "sample"),
    "download": (StepOutputs, "__init__"),
    WAITS: (torch.cuda.Event, "synchronize"),
    "read": (StepOutputs, "read"),
    "deliver": (TorchEngine, "_deliver"),
    "order masks": (MaskPool, "order"),
    "tell": (TorchEngine, "_tell"),
    "publish": (TorchEngine, "_publish_load"),
}
KINDS: Mapping[str, Callable[[int], SamplingParams]] = {
    "plain": lambda count: SamplingParams(max_tokens=count),
    "temperature": lambda count: SamplingParams(max_tokens=count, temperature=0.8, seed=1),
    "top_p": lambda count: SamplingParams(max_tokens=count, temperature=0.8, top_p=0.9, seed=1),
    "penalties": lambda count: SamplingParams(
        max_tokens=count, temperature=0.8, top_p=0.9, seed=1, repetition_penalty=1.1
    ),
    "logprobs": lambda count: SamplingParams(max_tokens=count, logprob_count=5),
    "guided": lambda count: SamplingParams(
        max_tokens=count,
        min_tokens=count,
        stop_token_ids=frozenset([0]),
        guide=Guide("regex", "[a-z ]*"),
    ),
}


class IdleKernels(TorchKernels):
    """Kernels under step graphs, which are recorded and never replayed."""

    tile_size: int | None = 16

    def attend(self, query: torch.Tensor, cache: torch.Tensor, layout: BatchLayout) -> torch.Tensor:
        return query


class IdleGraph:
    """Stands for a CUDA graph; replaying it leaves the logits that its recording gave."""

    def replay(self) -> None:
        pass


class DroppingSink:
    """Stands for callers that take no time."""

    def put(self, messages: Sequence[Message]) -> None:
        pass


@dataclass(frozen=True)
class Load:
    """What is measured.

    Attributes:
        kind: of KINDS.
        batch_size: sequences.
        prompt_token_count: of each.
        seconds: the window.
    """

    kind: str
    batch_size: int
    prompt_token_count: int
    seconds: float

    @property
    def max_tokens(self) -> int:
        """More than a window has steps."""
        return 400 + int(self.seconds * 20_000)


def measure(engine: TorchEngine, config: LLMConfig, load: Load) -> Mapping[str, float]:
    """Returns the microseconds a step of each stage."""
    prompts = Prompts(config, torch.bfloat16, 0)
    params = KINDS[load.kind](load.max_tokens)
    requests = [
        Request(prompts.text(load.prompt_token_count), params) for _ in range(load.batch_size)
    ]
    sequences = [asyncio.run(engine._sequence(one, load.max_tokens)) for one in requests]
    sink = DroppingSink()
    for sequence in sequences:
        engine._inbox.put(partial(engine._add, sequence, sink, None))
    while min(sequence.output_length for sequence in sequences) < 4:
        time.sleep(0.01)
    clock = StageClock(STAGES)
    _in_thread(engine, clock.__enter__)
    time.sleep(load.seconds)
    _in_thread(engine, partial(clock.__exit__, None, None, None))
    if any(sequence.has_ended for sequence in sequences):
        raise ValueError("a sequence has ended within the window")
    for sequence in sequences:
        engine._inbox.put(partial(engine._abort, sequence))
    return _microseconds(clock)


def _in_thread(engine: TorchEngine, call: Callable[[], object]) -> None:
    """Has the engine's thread make a call between two steps, and waits for it."""
    done = asyncio.new_event_loop()
    made = done.create_future()

    def make() -> None:
        call()
        done.call_soon_threadsafe(made.set_result, None)

    engine._inbox.put(make)
    done.run_until_complete(made)
    done.close()


def _microseconds(clock: StageClock) -> Mapping[str, float]:
    steps = clock.counts["step"]
    cpu = {stage: clock.cpu_seconds[stage] / steps * 1e6 for stage in STAGES if stage != WAITS}
    wall = sum(clock.seconds.values()) / steps * 1e6
    waits = clock.seconds[WAITS] / steps * 1e6
    return {"whole step": wall, WAITS: waits, "host": wall - waits, "CPU": sum(cpu.values()), **cpu}


@contextmanager
def idle_engine(max_running: int) -> Iterator[tuple[LLMConfig, TorchEngine]]:
    """Yields an engine whose device does nothing: the host alone takes time."""

    def record(
        step: Callable[..., Any], arguments: tuple[Any, ...], _: object
    ) -> tuple[IdleGraph, Any]:
        return IdleGraph(), step(*arguments)

    with (
        TemporaryDirectory() as folder,
        patch.object(step_graphs, "_record", record),
        patch("llm_service.engines.torch.weights.kernels_for", lambda *_: IdleKernels()),
        patch.object(model_runner, "compiled_decode", lambda *_: None),
        patch.object(ModelRunner, "overlaps", True),
        patch.object(launch, "CPU_BLOCK_SIZE", launch.CUDA_BLOCK_SIZE),
    ):
        write_random_checkpoint(Path(folder))
        with _engine(_settings(Path(folder), "cpu", max_running, GIB)) as started:
            yield started


@contextmanager
def _engine(settings: Settings) -> Iterator[tuple[LLMConfig, TorchEngine]]:
    served, engine = load(settings)
    try:
        yield served.config, cast("TorchEngine", engine)
    finally:
        asyncio.run(engine.close())
        gc.collect()


def _settings(folder: Path, device: Any, max_running: int, byte_count: int) -> Settings:
    dtype: Any = "float32" if device == "cpu" else "auto"
    return Settings(
        engine_process="none",
        checkpoint=folder,
        torch=TorchOptions(device=device, dtype=dtype, thread_count=1),
        kv_cache_byte_count=byte_count,
        max_running_sequence_count=max_running,
    )


@contextmanager
def cuda_engine(
    kept: Path | None, shape: str, max_running: int, gib: int
) -> Iterator[tuple[LLMConfig, TorchEngine]]:
    """Yields an engine on the GPU, with the weights of a released shape."""
    with (
        open_shape(kept, shape, "cuda", tiny=False) as folder,
        _engine(_settings(folder, "cuda", max_running, gib * GIB)) as started,
    ):
        yield started


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures all kinds of requests in all batch sizes that the command line names."""
    options = _options(arguments)
    largest = max(options.batch)
    where = f"{options.shape} on CUDA" if options.device == "cuda" else "a device that does nothing"
    report = Report(f"{where}: microseconds a step", COMPARED, ())
    if options.device == "cuda":
        opened = cuda_engine(options.checkpoints, options.shape, largest, options.kv_gib)
    else:
        opened = idle_engine(largest)
    with opened as (config, engine):
        for kind in options.kind:
            for size in options.batch:
                costs = measure(engine, config, Load(kind, size, options.prompt, options.seconds))
                report.columns = ("sequences", *costs)
                report.add(f"{size} {kind}", [f"{cost:.0f}" for cost in costs.values()], {})
                print(f"{size} {kind}: host {costs['host']:.0f} us", flush=True)
    print(report.table())
    command = " ".join(["python", "-m", "tests.benchmarks.engine_host", *sys.argv[1:]])
    book = ReportBook(options.out, "engine_host", TITLE)
    book.put(report.title, report, command, os.getloadavg()[0])


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.engine_host")
    parser.add_argument("--out", type=Path, required=True, help="folder of the report")
    parser.add_argument("--device", choices=["none", "cuda"], default="none")
    parser.add_argument("--shape", choices=FAMILIES, default="1B", help="with CUDA")
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 8, 64, 128, 256])
    parser.add_argument("--kind", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--prompt", type=int, default=320, help="tokens of each prompt")
    parser.add_argument("--seconds", type=float, default=1.0, help="each window")
    parser.add_argument("--kv-gib", type=int, default=24, help="the KV cache, with CUDA")
    parser.add_argument("--checkpoints", type=Path, help="keep and use again what is written here")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
