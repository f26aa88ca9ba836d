"""Both services as they ship, in processes of their own, over engines that compute nothing.

`python -m tests.benchmarks.scripted_services vision|llm [the service's own options]`
"""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import closing
from itertools import cycle, islice

import torch
from pydantic_settings import CliApp

from llm_service.__main__ import make_service
from llm_service.checkpoint import LLMConfig
from llm_service.engines.base import Request, RowsNeededError, TokenOutput
from llm_service.engines.output_queue import OutputQueue
from llm_service.engines.pacing import Pacing
from llm_service.metrics import Metrics
from llm_service.model import ModelInfo
from llm_service.settings import Settings as LLMSettings
from llm_service.templates import INTERNVL2_5
from protos.process import logs
from protos.process.allocator import keep_freed_memory
from protos.process.server import serve
from protos.process.shared_memory import SlotReader, sharing
from tests.idle_engine import IdleEngine
from tests.real_tokenizers import real_tokenizer
from vision_service.__main__ import open_service, shared_memory
from vision_service.checkpoint import VisionConfig
from vision_service.engines.torch.engine import FinishedBatch
from vision_service.settings import Settings as VisionSettings

MODEL = "scripted"
# Those of a 1B on a large GPU with 32 sequences.
STEP_SECONDS = 0.00155
ANSWER = """\
The picture shows a red panda (Ailurus fulgens) that sits on a mossy branch and looks to the left.
Its fur is reddish-brown, the face has white marks; behind it there are "green" leaves, blurred.
1. The animal is in the middle. 2. Nothing is written anywhere — 没有文字. """


class ScriptedVisionEngine:
    """A VisionEngine that answers any tiles with the same random rows."""

    dtype = torch.bfloat16
    weights_sha256 = bytes(32)

    def __init__(self, config: VisionConfig) -> None:
        self._rows = torch.randn(config.tokens_per_tile, config.output_size).to(self.dtype)

    def encode(self, tiles: torch.Tensor) -> torch.Tensor:
        """See VisionEngine."""
        return self._rows.repeat(len(tiles), 1, 1)

    def submit(self, images: Sequence[torch.Tensor]) -> FinishedBatch:
        """See VisionEngine."""
        return FinishedBatch([self.encode(tiles) for tiles in images])

    def is_alive(self) -> bool:
        """See VisionEngine."""
        return True

    def close(self) -> None:
        """See VisionEngine."""


class ScriptedSequence:
    """A sequence of so many tokens, those of a text over and over."""

    def __init__(self, token_ids: Sequence[int], token_count: int, pacing: Pacing) -> None:
        self.loop = asyncio.get_running_loop()
        self.outputs = OutputQueue(pacing)
        self._token_ids = islice(cycle(token_ids), token_count)
        self._left_count = token_count

    def output(self) -> TokenOutput:
        """Returns the next token."""
        self._left_count -= 1
        return TokenOutput([next(self._token_ids)], None if self._left_count else "length")


class ScriptedLLMEngine(IdleEngine):
    """An LLMEngine that answers any prompt with a token at once, and a further one in each step.

    Its thread computes nothing, and hands a step's tokens on as the torch engine's does.
    """

    context_length = 1 << 20

    def __init__(self, token_ids: Sequence[int]) -> None:
        self._token_ids = token_ids
        self._running: dict[ScriptedSequence, None] = {}
        self._has_work = threading.Event()
        threading.Thread(target=self._run, name="scripted-engine", daemon=True).start()

    async def generate(self, request: Request) -> AsyncGenerator[TokenOutput, None]:
        if not all(image.is_held for image in request.prompt.images):
            raise RowsNeededError("there is no KV cache to stand for an image")
        sequence = ScriptedSequence(self._token_ids, request.params.max_tokens or 1, request.pacing)
        with closing(sequence.outputs) as outputs:
            outputs.put(output := sequence.output())
            if output.finish_reason is None:
                self._running[sequence] = None
                self._has_work.set()
            try:
                async for output in outputs:
                    yield output
            finally:
                self._running.pop(sequence, None)

    def _run(self) -> None:
        next_step = time.perf_counter()
        while self._has_work.wait():
            next_step = max(next_step + STEP_SECONDS, time.perf_counter())
            time.sleep(max(0.0, next_step - time.perf_counter()))
            self._step()

    def _step(self) -> None:
        self._has_work.clear()  # before it looks for some: who adds any sets it
        running = [*self._running]
        if not running:
            return
        self._has_work.set()
        outputs = [(sequence, sequence.output()) for sequence in running]
        for sequence, output in outputs:
            if output.finish_reason is not None:
                self._running.pop(sequence, None)
        running[0].loop.call_soon_threadsafe(_put, outputs)


def _put(outputs: Sequence[tuple[ScriptedSequence, TokenOutput]]) -> None:
    for sequence, output in outputs:
        sequence.outputs.put(output)


async def serve_vision(settings: VisionSettings) -> None:
    """Serves until SIGTERM."""
    config = VisionConfig.from_checkpoint(settings.checkpoint)
    engine = ScriptedVisionEngine(config)
    async with (
        shared_memory(settings) as memory,
        open_service(settings, config, engine, memory) as service,
    ):
        await serve(service, settings)


async def serve_llm(settings: LLMSettings) -> None:
    """Serves until SIGTERM."""
    config = LLMConfig.from_checkpoint(settings.checkpoint)
    tokenizer = real_tokenizer("internlm2_5")
    context = config.max_position_embeddings
    info = ModelInfo(
        model=MODEL,
        engine="scripted",
        config=config,
        tokenizer=tokenizer,
        template=INTERNVL2_5,
        max_context_token_count=context,
        max_image_count=settings.max_image_count,
        max_upload_seconds=settings.max_upload_seconds,
        created_unix_seconds=0,
    )
    engine = ScriptedLLMEngine(tokenizer.encode(ANSWER))
    async with sharing(settings.shared_memory_folder, SlotReader.open) as memory:
        await serve(make_service(settings, info, engine, Metrics(engine), memory), settings)


def main() -> None:
    """Runs the service that the command line names."""
    _, name, *arguments = sys.argv
    torch.set_num_threads(1)
    keep_freed_memory()
    if name == "vision":
        vision_settings = CliApp.run(VisionSettings, cli_args=arguments)
        logs.configure(vision_settings.log_level, vision_settings.log_format)
        asyncio.run(serve_vision(vision_settings))
    else:
        llm_settings = CliApp.run(LLMSettings, cli_args=arguments)
        logs.configure(llm_settings.log_level, llm_settings.log_format)
        asyncio.run(serve_llm(llm_settings))


if __name__ == "__main__":
    main()
