"""Both services as they ship, in processes of their own, over engines that sleep as long as an
H200 would compute.

`python -m tests.benchmarks.crossover.simulated_services SIMULATION [the service's own options]`
"""

from __future__ import annotations

import asyncio
import io
import json
import sys
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

import numpy as np
import structlog
import torch
from PIL import Image
from pydantic_settings import CliApp

from llm_service import generator
from llm_service.__main__ import make_service
from llm_service.checkpoint import LLMConfig
from llm_service.engines.base import Request, RowsNeededError, TokenOutput
from llm_service.images import RequestImages
from llm_service.metrics import Metrics
from llm_service.model import ModelInfo
from llm_service.settings import Settings as LLMSettings
from llm_service.tables import TableMessage
from llm_service.templates import read_template
from llm_service.tokenizer import Tokenizer
from protos.process import logs
from protos.process.server import serve
from tests.benchmarks.crossover.prefixes import PrefixCache
from tests.benchmarks.crossover.simulated_gpu import SimulatedGpus, Work
from tests.benchmarks.crossover.stage_times import (
    PREPROCESS_TILE_SECONDS,
    SHAPES,
    Span,
    StageTimes,
    encode,
    launch,
)
from tests.benchmarks.crossover.stamped_llm import ARRIVED
from tests.benchmarks.scripted_services import ScriptedVisionEngine
from tests.idle_engine import IdleEngine
from vision_service.__main__ import open_service
from vision_service.checkpoint import VisionConfig
from vision_service.engines.torch.engine import FinishedBatch
from vision_service.preprocessor import Preprocessor
from vision_service.settings import Settings as VisionSettings
from vision_service.tiling import TiledImage, choose_grid

logger = structlog.get_logger()
# Tokens after the first leave together: their mean time is the same, and this machine, which is not
# what is simulated, works less.
TOKENS_TOGETHER = 8
# This machine catches up with the simulated clock after such a delay, not after longer ones.
LONGEST_LATE_SECONDS = 0.25


@dataclass(frozen=True)
class Simulation:
    """What a simulated service is told beside its options.

    Attributes:
        service: which of the two.
        shape: whose stage times; a key of SHAPES.
        slowness: seconds here for each second there, so that this machine's own work is small
            beside what is simulated.
        gpus: the file of the GPUs.
        gpu: which one is its own.
        slot: its place there.
        kv_token_count: tokens of prompts whose beginnings the LLM service knows again.
    """

    service: Literal["vision", "llm"]
    shape: str
    slowness: float
    gpus: str
    gpu: int
    slot: int
    kv_token_count: int = 0

    @classmethod
    def parse(cls, text: str) -> Simulation:
        """Reads what `argument` wrote."""
        return cls(**json.loads(text))

    def argument(self) -> str:
        """Returns it as one argument of a command line."""
        return json.dumps(asdict(self))

    @property
    def times(self) -> StageTimes:
        """The shape's stage times, of the H200."""
        return SHAPES[self.shape]


class Gpu:
    """One process's share of a simulated GPU; takes seconds of an H200."""

    def __init__(self, simulation: Simulation) -> None:
        self._gpus = SimulatedGpus(Path(simulation.gpus))
        self._place = (simulation.gpu, simulation.slot)
        self._slowness = simulation.slowness

    def block(self, work: Work, seconds: float) -> None:
        """Computes on the caller's thread."""
        for pause in self._gpus.compute(*self._place, work, seconds * self._slowness):
            time.sleep(pause)

    async def wait(self, work: Work, seconds: float, begin: float) -> float:
        """Computes beside the event loop's other tasks.

        Args:
            work: what kind.
            seconds: what it takes alone.
            begin: when it should have begun, on the clock of `time.perf_counter`.

        Returns:
            When it should have ended.
        """
        late = time.perf_counter() - begin
        for pause in self._gpus.compute(*self._place, work, seconds * self._slowness - late):
            await asyncio.sleep(pause)
        return time.perf_counter() - self._gpus.overshoot_seconds


class SimulatedVisionEngine(ScriptedVisionEngine):
    """A VisionEngine that takes an H200's time and answers with random rows."""

    def __init__(self, config: VisionConfig, gpu: Gpu) -> None:
        super().__init__(config)
        self._gpu = gpu

    def submit(self, images: Sequence[torch.Tensor]) -> FinishedBatch:
        self._gpu.block("vision", encode(sum(map(len, images))))
        return super().submit(images)


class SimulatedPreprocessing:
    """Decodes nothing: it takes as long, on as many threads, and the tiles are black."""

    def __init__(self, simulation: Simulation, thread_count: int, config: VisionConfig) -> None:
        self._slowness = simulation.slowness
        self._threads = asyncio.Semaphore(thread_count)
        self._tile_size = config.tile_size
        self._shape = (3, config.tile_size, config.tile_size)

    async def tile(self, data: bytes, max_tile_count: int) -> tuple[TiledImage, float]:
        """See Preprocessor."""
        with Image.open(io.BytesIO(data)) as image:  # reads the header alone
            width, height = image.size
        grid = choose_grid(width, height, max_tile_count, self._tile_size)
        seconds = PREPROCESS_TILE_SECONDS * grid.tile_count * self._slowness
        async with self._threads:
            await asyncio.sleep(seconds)
        tiles = np.zeros((grid.tile_count, *self._shape), dtype=np.uint8)
        return TiledImage(tiles, grid, width, height), seconds


@dataclass(eq=False)
class _Sequence:
    """One answer in the making.

    Attributes:
        known_count: tokens of the prompt and the answer so far.
        max_output_count: tokens of the whole answer.
        computed_count: known tokens that steps have computed.
        output_count: tokens of the answer so far.
        held_count: those among them that have not left yet.
        outputs: what has left.
    """

    known_count: int
    max_output_count: int
    computed_count: int = 0
    output_count: int = 0
    held_count: int = 0
    outputs: asyncio.Queue[TokenOutput] = field(default_factory=asyncio.Queue)


class SimulatedLLMEngine(IdleEngine):
    """An LLMEngine that takes an H200's time and says the same token again and again.

    It batches as the torch engine does: all that run take part in every step, new prompts are read
    in chunks with what the budget of a step leaves. Its KV cache never refuses a sequence.
    """

    context_length = 1 << 20

    def __init__(self, simulation: Simulation, token_id: int, max_running_count: int) -> None:
        self._times = simulation.times
        self._slowness = simulation.slowness
        self._gpu = Gpu(simulation)
        self._token_id = token_id
        self._max_running_count = max_running_count
        self._prefixes = PrefixCache(simulation.kv_token_count)
        self._sequences: list[_Sequence] = []
        self._steps: asyncio.Task[None] | None = None

    async def generate(self, request: Request) -> AsyncGenerator[TokenOutput, None]:
        if not all(image.is_held for image in request.prompt.images):
            raise RowsNeededError("there is no KV cache to stand for an image")
        assert request.params.max_tokens is not None
        sequence = _Sequence(
            len(request.prompt.token_ids),
            request.params.max_tokens,
            computed_count=self._prefixes.known_count(request.prompt),
        )
        self._sequences.append(sequence)
        if self._steps is None or self._steps.done():
            self._steps = asyncio.create_task(self._run())
        try:
            output = await sequence.outputs.get()
            self._prefixes.add(request.prompt)
            yield output
            while output.finish_reason is None:
                output = await sequence.outputs.get()
                yield output
        finally:
            if sequence in self._sequences:
                self._sequences.remove(sequence)

    async def _run(self) -> None:
        """Steps until there is nothing to do.

        The GPU does not wait for this machine between two steps: what one step is late, the next
        one takes less.
        """
        ended = time.perf_counter()
        while self._sequences:
            step = self._schedule()
            begin = max(ended, time.perf_counter() - LONGEST_LATE_SECONDS)
            ended = await self._compute([span for _, span in step], begin)
            for sequence, span in step:
                self._advance(sequence, span)

    def _schedule(self) -> list[tuple[_Sequence, Span]]:
        """Returns what the next step computes: first those that only need their next token."""
        running = self._sequences[: self._max_running_count]
        running.sort(key=lambda one: one.known_count - one.computed_count > 1)
        budget, step = self._times.max_step_token_count, []
        for sequence in running:
            begin = sequence.computed_count
            if count := min(sequence.known_count - begin, budget):
                step.append((sequence, Span(begin, begin + count)))
                budget -= count
        return step

    async def _compute(self, spans: Sequence[Span], begin: float) -> float:
        """Takes the GPU's time, or the host's where launching the step takes longer.

        Args:
            spans: the step.
            begin: when it should have begun.

        Returns:
            When it should have ended.
        """
        is_decode = all(span.is_decode for span in spans)
        work: Work = "decode" if is_decode else "prefill"
        computed = await self._gpu.wait(work, self._times.step(spans), begin)
        launched = begin + launch(len(spans)) * self._slowness
        await asyncio.sleep(max(0.0, launched - time.perf_counter()))
        return max(computed, launched)

    def _advance(self, sequence: _Sequence, span: Span) -> None:
        sequence.computed_count = span.end
        if span.end < sequence.known_count or sequence not in self._sequences:
            return
        sequence.known_count += 1
        sequence.output_count += 1
        sequence.held_count += 1
        ended = sequence.output_count == sequence.max_output_count
        if ended:
            self._sequences.remove(sequence)
        if ended or sequence.output_count == 1 or sequence.held_count == TOKENS_TOGETHER:
            token_ids = [self._token_id] * sequence.held_count
            sequence.held_count = 0
            sequence.outputs.put_nowait(TokenOutput(token_ids, "length" if ended else None))


class TravellingImages(RequestImages):
    """Images whose embeddings take as long to arrive as those of the real width do.

    A gateway passes one chunk on at a time, so that embeddings wait for each other; as each gateway
    has an LLM service of its own in every arrangement, they wait here.
    """

    simulation: Simulation
    turn: asyncio.Lock

    async def receive(self, messages: AsyncIterator[TableMessage]) -> AsyncGenerator[int, None]:
        wanted = self.wanted()
        async with aclosing(super().receive(messages)) as read:
            async for index in read:
                yield index
        images = self.prompt("").images
        row_count = sum(images[index].row_count for index in wanted)
        times, slowness = self.simulation.times, self.simulation.slowness
        async with self.turn:
            await asyncio.sleep(times.relay(row_count) * slowness)
        await asyncio.sleep(times.travel(row_count) * slowness)
        logger.info(ARRIVED)


async def serve_vision(simulation: Simulation, settings: VisionSettings) -> None:
    """Serves until SIGTERM."""
    config = VisionConfig.from_checkpoint(settings.checkpoint)
    engine = SimulatedVisionEngine(config, Gpu(simulation))
    decoding = SimulatedPreprocessing(simulation, settings.preprocess_worker_count, config)

    async def tile(_: Preprocessor, *arguments: Any) -> tuple[TiledImage, float]:
        return await decoding.tile(*arguments)

    with patch.object(Preprocessor, "tile", tile):
        async with open_service(settings, config, engine) as service:
            await serve(service, settings)


async def serve_llm(simulation: Simulation, settings: LLMSettings) -> None:
    """Serves until SIGTERM."""
    config = LLMConfig.from_checkpoint(settings.checkpoint)
    tokenizer = Tokenizer.from_checkpoint(settings.checkpoint)
    info = ModelInfo(
        settings.model_names[0],
        "simulated",
        config,
        tokenizer,
        read_template(settings.checkpoint, settings.template),
        config.max_position_embeddings,
        settings.max_image_count,
        settings.max_upload_seconds,
        created_unix_seconds=0,
    )
    token_id = tokenizer.encode("a")[-1]
    engine = SimulatedLLMEngine(simulation, token_id, settings.max_running_sequence_count)
    TravellingImages.simulation, TravellingImages.turn = simulation, asyncio.Lock()
    with patch.object(generator, "RequestImages", TravellingImages):
        await serve(make_service(settings, info, engine, Metrics(engine)), settings)


def main() -> None:
    """Runs the service that the first argument describes."""
    _, text, *arguments = sys.argv
    simulation = Simulation.parse(text)
    torch.set_num_threads(1)
    if simulation.service == "vision":
        vision_settings = CliApp.run(VisionSettings, cli_args=arguments)
        logs.configure(vision_settings.log_level, vision_settings.log_format)
        asyncio.run(serve_vision(simulation, vision_settings))
    else:
        llm_settings = CliApp.run(LLMSettings, cli_args=arguments)
        logs.configure(llm_settings.log_level, llm_settings.log_format)
        asyncio.run(serve_llm(simulation, llm_settings))


if __name__ == "__main__":
    main()
