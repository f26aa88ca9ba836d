"""The torch engine on one GPU, with the released shapes and random weights.

`python -m tests.benchmarks.engine_cuda --out DIR [--shape 8B] [--part decode prefill ...]`, with
`--quantization fp8` the engine in float8.
The whole product is measured by tests.benchmarks.serving.
"""

from __future__ import annotations

import argparse
import asyncio
import faulthandler
import gc
import os
import shlex
import sys
import threading
import time
import traceback
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

import torch

from llm_service.__main__ import load
from llm_service.checkpoint import LLMConfig
from llm_service.engines.torch.engine import TorchEngine
from llm_service.engines.torch.launch import start_engine
from llm_service.model import read_model
from llm_service.settings import Quantization, Settings, TorchOptions
from protos.errors import ServiceError
from protos.process.settings import GIB
from tests.benchmarks import engine_parts, speculation
from tests.benchmarks.beside import beside
from tests.benchmarks.engine_parts import Sizes, Subject
from tests.benchmarks.prompts import Prompts
from tests.benchmarks.report import Report, ReportBook
from tests.benchmarks.shapes import FAMILIES, open_shape
from tests.benchmarks.vision_cuda import bench_of

TITLE = "The torch engine on one GPU, random weights"
PART_SECONDS = 180.0
DRAFT_TOKEN_COUNT = 7
Part = Callable[[Subject], Awaitable[list[Report]]]
ENGINE_PARTS: Mapping[str, Part] = {
    "decode": engine_parts.decode,
    "prefill": engine_parts.prefill,
    "turns": engine_parts.turns,
    "host": engine_parts.host,
    "beside": beside,
}
PARTS = (*ENGINE_PARTS, "speculation", "offload", "transformers")
# What may befall a part without making the others vain.
FAILURES = (RuntimeError, ValueError, OSError, ServiceError)
GOALS: Mapping[str, Mapping[str, str]] = {
    "8B": {
        "decode 1": "<= 6.0",
        "decode 8": "<= 7.0",
        "decode 32": "<= 10.5",
        "prefill 3383": "<= 80",
        "hit 3328": "<= 10",
    },
    "8B in fp8": {"decode 1": "<= 2.9", "prefill 3383": "<= 55"},
}


@dataclass(frozen=True)
class Scale:
    """How large everything is: the whole shapes, or tiny ones that try this program out."""

    tiny: bool
    sizes: Sizes
    speculation: speculation.Sizes
    kv_cache_byte_count: int
    offload_kv_cache_byte_count: int
    host_cache_byte_count: int


# 32 sequences of 4,300 tokens take 17 GiB in the 8B's shape; 24 conversations of 3,400, 10
WHOLE = Scale(False, Sizes(), speculation.Sizes(), 24 * GIB, 6 * GIB, 14 * GIB)
TINY = Scale(
    True,
    Sizes(
        prompt_token_count=20,
        batch_sizes=(1, 2),
        host_batch_sizes=(1, 2),
        max_tokens=8000,
        window_seconds=2.0,  # a busy machine makes few steps a second
        trace_seconds=0.5,
        prefill_token_counts=(12, 20),
        length_pair_count=1,
        row_count=32,
        question_token_count=8,
        answer_token_count=2,
        reference_batch_sizes=(1, 2),
        reference_token_count=3,
        reference_repeat_count=1,
        conversations=((32, 3), (40, 2)),
        listener_count=1,
    ),
    speculation.Sizes(answer_token_count=20, prompt_token_counts={1: 120, 2: 30}, repeat_count=1),
    GIB // 4,
    GIB // 4,
    GIB // 4,
)


@dataclass
class Bench:
    """One shape's measurements: what is started where, and where the results go.

    Attributes:
        draft_token_count: of the part "speculation".
        quantization: of the engine.
        failures: the parts that failed.
    """

    shape: str
    checkpoint: Path
    device: Literal["cpu", "cuda"]
    scale: Scale
    book: ReportBook
    draft_token_count: int
    quantization: Quantization
    failures: list[str] = field(default_factory=list)

    @property
    def subject(self) -> str:
        """What runs."""
        ending = "" if self.quantization == "none" else f" in {self.quantization}"
        return self.shape + ending

    def run(self, parts: Sequence[str]) -> None:
        """Runs the parts."""
        _free_memory()  # of the shape before
        if own := {part: ENGINE_PARTS[part] for part in parts if part in ENGINE_PARTS}:
            with self._attempt("engine"):
                asyncio.run(self._run_engine_parts(own, self._settings()))
        if "speculation" in parts:
            with self._attempt("speculation") as load_before:
                reports = asyncio.run(self._run_speculation())
                self._write("speculation", reports, load_before)
        if "offload" in parts:
            with self._attempt("engine with a host cache"):
                own = {"offload": engine_parts.offload}
                asyncio.run(self._run_engine_parts(own, self._offload_settings()))
        if "transformers" in parts:
            with self._attempt("transformers") as load_before:
                self._write("transformers", self._run_transformers(), load_before)

    def _settings(self) -> Settings:
        return Settings(
            engine_process="none",
            checkpoint=self.checkpoint,
            torch=TorchOptions(device=self.device, quantization=self.quantization),
            kv_cache_byte_count=self.scale.kv_cache_byte_count,
        )

    def _offload_settings(self) -> Settings:
        """Returns a small KV cache with another in host memory, which a CPU has no use for."""
        byte_count = self.scale.host_cache_byte_count if self.device == "cuda" else 0
        return Settings(
            engine_process="none",
            checkpoint=self.checkpoint,
            torch=TorchOptions(device=self.device, host_cache_byte_count=byte_count),
            kv_cache_byte_count=self.scale.offload_kv_cache_byte_count,
        )

    async def _run_engine_parts(self, parts: Mapping[str, Part], settings: Settings) -> None:
        threads_before = set(threading.enumerate())
        started = time.perf_counter()
        served, engine = load(settings)
        print(
            f"{self.subject} engine: warm after {time.perf_counter() - started:.1f} s", flush=True
        )
        threads = set(threading.enumerate()) - threads_before
        prompts = Prompts(served.config, torch.bfloat16, self.scale.sizes.largest_row_count)
        tower = bench_of(torch.device(self.device), tiny=self.scale.tiny)
        goals = GOALS.get(self.subject, {})
        subject = Subject(engine, prompts, threads, self.scale.sizes, goals, tower)
        try:
            for name, part in parts.items():
                with self._attempt(name) as load_before:
                    self._write(name, await part(subject), load_before)
        finally:
            await engine.close()

    async def _run_speculation(self) -> list[Report]:
        counts = {"none": 0, "drafts": self.draft_token_count}
        engines = {name: self._torch_engine(count) for name, count in counts.items()}
        config = LLMConfig.from_checkpoint(self.checkpoint)
        prompts, sizes = Prompts(config, torch.bfloat16, 1), self.scale.speculation
        try:
            return [await speculation.measure(engines, prompts, sizes, self.draft_token_count)]
        finally:
            for engine in engines.values():
                await engine.close()

    def _torch_engine(self, draft_token_count: int) -> TorchEngine:
        settings = Settings(
            engine_process="none",
            checkpoint=self.checkpoint,
            torch=TorchOptions(device=self.device, draft_token_count=draft_token_count),
            kv_cache_byte_count=self.scale.kv_cache_byte_count,
        )
        config, tokenizer, _ = read_model(settings)
        return start_engine(settings, config, tokenizer)

    def _run_transformers(self) -> list[Report]:
        config, device = LLMConfig.from_checkpoint(self.checkpoint), torch.device(self.device)
        return engine_parts.transformers(config, device, torch.bfloat16, self.scale.sizes)

    @contextmanager
    def _attempt(self, name: str) -> Iterator[float]:
        """Yields the load of the machine; a failure is printed, a standstill ends the process."""
        started, (load_before, _, _) = time.perf_counter(), os.getloadavg()
        print(f"measuring {self.shape} {name} ...", flush=True)
        faulthandler.dump_traceback_later(PART_SECONDS, exit=True)
        try:
            yield load_before
        except FAILURES:
            traceback.print_exc()
            self.failures.append(f"{self.shape} {name}")
        finally:
            faulthandler.cancel_dump_traceback_later()
            print(f"{self.shape} {name}: {time.perf_counter() - started:.1f} s", flush=True)

    def _write(self, part: str, reports: Sequence[Report], load_before: float) -> None:
        command = shlex.join(["python", "-m", "tests.benchmarks.engine_cuda", *sys.argv[1:]])
        for report in reports:
            self.book.put(f"{self.subject} {report.title}", report, command, load_before)
            print(f"\n{self.subject} {report.title}\n\n{report.table()}\n", flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the parts that the command line names, or all; returns how many have failed."""
    options = _options(arguments)
    book = ReportBook(options.out, "engine_cuda", TITLE)
    failures: list[str] = []
    for shape in options.shape:
        with open_shape(options.checkpoints, shape, options.device, options.tiny) as checkpoint:
            scale = TINY if options.tiny else WHOLE
            bench = Bench(
                shape,
                checkpoint,
                options.device,
                scale,
                book,
                options.draft_token_count,
                options.quantization,
            )
            bench.run(options.part)
            failures += bench.failures
    if failures:
        print(f"failed: {', '.join(failures)}")
    return len(failures)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.engine_cuda")
    parser.add_argument("--out", type=Path, required=True, help="folder of the reports")
    parser.add_argument("--part", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--shape", nargs="+", choices=FAMILIES, default=["8B"])
    parser.add_argument(
        "--draft-token-count", type=int, default=DRAFT_TOKEN_COUNT, help="of the part speculation"
    )
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--quantization", choices=get_args(Quantization), default="none")
    parser.add_argument("--tiny", action="store_true", help="tiny shapes, to try this program")
    parser.add_argument("--checkpoints", type=Path, help="keep and use again what is written here")
    return parser.parse_args(arguments)


def _free_memory() -> None:
    """Gives back what PyTorch holds of the GPU without using it."""
    gc.collect()
    torch.cuda.empty_cache()


if __name__ == "__main__":
    sys.exit(main())
