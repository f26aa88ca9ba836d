"""Both services as they ship, in processes of their own, over engines that compute nothing.

`python -m tests.benchmarks.scripted_services vision|llm [the service's own options]`
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator, Sequence

import torch
from pydantic_settings import CliApp

from llm_service.__main__ import make_service
from llm_service.checkpoint import LLMConfig
from llm_service.engines.base import Request, RowsNeededError, TokenOutput
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


class ScriptedLLMEngine(IdleEngine):
    """An LLMEngine that answers any prompt with one token at once."""

    context_length = 1 << 20

    async def generate(self, request: Request) -> AsyncGenerator[TokenOutput, None]:
        if not all(image.is_held for image in request.prompt.images):
            raise RowsNeededError("there is no KV cache to stand for an image")
        yield TokenOutput([1], "length")


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
    engine = ScriptedLLMEngine()
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
