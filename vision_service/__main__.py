"""The composition root of the vision service: settings, logs, engine, servicer, serve."""

from __future__ import annotations

import asyncio
import functools
import sys
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, closing, nullcontext

import structlog

from protos.checkpoint.fingerprint import CheckpointFingerprint
from protos.checkpoint.section import CheckpointError
from protos.process import logs
from protos.process.allocator import keep_freed_memory
from protos.process.check import check
from protos.process.embedding_key import read_embedding_key
from protos.process.server import Service, exit_on_stop_signals, serve
from protos.process.settings import read_settings
from protos.process.shared_memory import SlotWriter, sharing
from protos.process.supervisor import supervisor
from protos.signature import EmbeddingKeyError
from protos.transport import MESSAGE_OVERHEAD_BYTE_COUNT
from vision_service.batcher import TileBatcher
from vision_service.cache import EmbeddingCache
from vision_service.checkpoint import VisionConfig
from vision_service.encoder import ImageEncoder, ModelInfo
from vision_service.engines.base import EngineStartError, VisionEngine
from vision_service.engines.placement import place_engine
from vision_service.inspection import inspect
from vision_service.metrics import Metrics
from vision_service.preprocessor import Preprocessor, PreprocessorLimits
from vision_service.recipe import recipe_sha256
from vision_service.servicer import SERVICE_NAME, VisionServicer
from vision_service.settings import ProgramSettings, Settings

logger = structlog.get_logger()


def main() -> None:
    """Runs the service; exits with 1 when it cannot start or when its engine dies."""
    exit_on_stop_signals()
    supervisor()  # first, while its variables have reached no other process
    keep_freed_memory()
    settings = read_settings(ProgramSettings)
    if settings.check is not None:
        check(functools.partial(inspect, settings))
    logs.configure(settings.log_level, settings.log_format, settings.log_lines_per_second)
    try:
        healthy = asyncio.run(run(settings))
    except (CheckpointError, EmbeddingKeyError, EngineStartError, OSError, MemoryError) as error:
        logger.error("start_failed", error=str(error) or "there is no memory left")
        sys.exit(1)
    sys.exit(0 if healthy else 1)


async def run(settings: Settings) -> bool:
    """Loads and warms the engine, then serves; returns what `serve` returns.

    Raises:
        CheckpointError: the checkpoint cannot be served.
        EngineStartError: the engine cannot start here.
        EmbeddingKeyError: the key cannot be used.
        OSError: the address cannot be bound, or the folder of the shared memory not be used.
    """
    logger.info("loading", checkpoint=str(settings.checkpoint), engine=settings.engine)
    with supervisor().loading(str(settings.checkpoint)):
        config, engine = await asyncio.to_thread(load, settings)
    with closing(engine):
        async with (
            shared_memory(settings) as memory,
            open_service(settings, config, engine, memory) as service,
        ):
            return await serve(service, settings)


def load(settings: Settings) -> tuple[VisionConfig, VisionEngine]:
    """Reads the checkpoint and returns its configuration and the warm engine; errors as `run`."""
    config = VisionConfig.from_checkpoint(settings.checkpoint)
    return config, place_engine(settings, config)


@asynccontextmanager
async def open_service(
    settings: Settings,
    config: VisionConfig,
    engine: VisionEngine,
    memory: SlotWriter | None = None,
) -> AsyncIterator[Service]:
    """Yields the service over a warm engine; on leaving, its threads and processes end.

    Without memory all embeddings go in chunks.
    """
    info = await asyncio.to_thread(model_info, settings, config, engine)
    preprocessor = Preprocessor(
        config.tile_size, preprocessor_limits(settings), settings.transparency, config.tile_policy
    )
    batcher = TileBatcher(
        engine,
        max_batch_tile_count=settings.max_batch_tile_count,
        max_queued_tile_count=settings.max_queued_tile_count,
    )
    cache = EmbeddingCache(settings.cache_byte_count)
    key = read_embedding_key(settings)
    metrics = Metrics()
    encoder = ImageEncoder(info, preprocessor, batcher, cache, metrics, key)
    servicer = VisionServicer(encoder, memory)
    async with batcher, preprocessor:
        yield Service(
            name=SERVICE_NAME,
            register=servicer.register,
            is_healthy=batcher.is_healthy,
            is_ready=preprocessor.is_ready,
            max_message_byte_count=settings.max_image_byte_count + MESSAGE_OVERHEAD_BYTE_COUNT,
            max_call_count=settings.max_call_count,
            reflection=settings.reflection,
            metrics=metrics,
        )


def shared_memory(settings: Settings) -> AbstractAsyncContextManager[SlotWriter | None]:
    """Returns what opens the memory that LLM services read; errors as of `sharing`."""
    if not settings.shared_memory_byte_count:
        return nullcontext()
    writer = functools.partial(SlotWriter.open, max_byte_count=settings.shared_memory_byte_count)
    return sharing(settings.shared_memory_folder, writer)


def preprocessor_limits(settings: Settings) -> PreprocessorLimits:
    """Returns what images may take."""
    return PreprocessorLimits(
        worker_count=settings.preprocess_worker_count,
        max_image_count=settings.max_preprocessing_image_count,
        max_pixel_count=settings.max_image_pixel_count,
        max_decode_byte_count=settings.max_decode_byte_count,
        max_decode_seconds=settings.max_decode_seconds,
        thread_count=settings.preprocess_thread_count,
    )


def model_info(settings: Settings, config: VisionConfig, engine: VisionEngine) -> ModelInfo:
    """Returns what the service tells of itself; reads bytes of all of the checkpoint's files."""
    max_tile_count = settings.max_tile_count or config.max_dynamic_patch
    return ModelInfo(
        model=settings.model_name,
        engine=settings.engine,
        recipe_sha256=recipe_sha256(
            config, engine.weights_sha256, engine.dtype, settings.transparency
        ),
        hidden_size=config.output_size,
        tokens_per_tile=config.tokens_per_tile,
        tile_size=config.tile_size,
        dtype=engine.dtype,
        default_tile_count=min(config.max_dynamic_patch, max_tile_count)
        if config.dynamic_image_size
        else 1,
        max_tile_count=max_tile_count,
        max_image_byte_count=settings.max_image_byte_count,
        max_image_pixel_count=settings.max_image_pixel_count,
        checkpoint=CheckpointFingerprint.from_checkpoint(settings.checkpoint),
    )


if __name__ == "__main__":
    main()
