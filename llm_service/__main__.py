"""The LLM service's process: settings, logs, tokenizer, engine, servicer, serve."""

from __future__ import annotations

import asyncio
import sys
from functools import partial

import structlog

from llm_service.checkpoint import created_unix_seconds
from llm_service.engines.base import EngineStartError, LLMEngine
from llm_service.engines.create import create_engine
from llm_service.engines.pacing import Pacing
from llm_service.engines.process.engine import ProcessEngine
from llm_service.engines.process.launch import is_elsewhere, start_engine
from llm_service.generator import Generator
from llm_service.inspection import inspect
from llm_service.metrics import Metrics
from llm_service.model import ModelInfo, read_model
from llm_service.servicer import SERVICE_NAME, LLMServicer
from llm_service.settings import ProgramSettings, Settings
from llm_service.table_arena import TableArena, page_locked_arena
from llm_service.tables import TableCache
from protos.checkpoint.fingerprint import CheckpointFingerprint
from protos.checkpoint.section import CheckpointError
from protos.process import logs
from protos.process.allocator import give_back_freed_memory, keep_freed_memory
from protos.process.check import check
from protos.process.embedding_key import read_embedding_key
from protos.process.server import Service, exit_on_stop_signals, serve
from protos.process.settings import is_loopback, read_settings
from protos.process.shared_memory import SlotReader, sharing
from protos.process.supervisor import supervisor
from protos.process.threads import give_lock_away_soon
from protos.signature import EmbeddingKey, EmbeddingKeyError

logger = structlog.get_logger()


def main() -> None:
    """Serves a language model over gRPC until it is told to stop; status 1 when the engine dies."""
    exit_on_stop_signals()
    supervisor()  # first, while its variables have reached no other process
    keep_freed_memory()
    settings = read_settings(ProgramSettings)
    if settings.check is not None:
        check(partial(inspect, settings))
    logs.configure(settings.log_level, settings.log_format, settings.log_lines_per_second)
    try:
        with supervisor().loading(str(settings.checkpoint)):
            info, engine = load(settings)
    except (CheckpointError, EngineStartError, OSError, MemoryError) as error:
        logger.error("start_failed", error=str(error) or "there is no memory left")
        sys.exit(1)
    sys.exit(asyncio.run(_run(settings, info, engine)))


async def _run(settings: Settings, info: ModelInfo, engine: LLMEngine) -> int:
    try:
        async with sharing(settings.shared_memory_folder, SlotReader.open) as memory:
            service = make_service(settings, info, engine, Metrics(engine), memory)
            healthy = await serve(service, settings)
    except (EmbeddingKeyError, OSError) as error:
        logger.error("start_failed", error=str(error))
        return 1
    finally:
        await engine.close()
    return 0 if healthy else 1


def load(settings: Settings) -> tuple[ModelInfo, LLMEngine]:
    """Reads the checkpoint and returns what it is served as, and its engine, warm.

    Raises:
        CheckpointError: the checkpoint is not one that we serve.
        EngineStartError: the engine cannot run here.
    """
    config, tokenizer, template = read_model(settings)
    created = created_unix_seconds(settings.checkpoint)
    fingerprint = CheckpointFingerprint.from_checkpoint(settings.checkpoint)
    # Last: nobody would close it.
    if is_elsewhere(settings):
        engine: LLMEngine = start_engine(settings)
    else:
        give_lock_away_soon()
        engine = create_engine(settings, config, tokenizer)
    give_back_freed_memory()  # to read a tokenizer takes 100 MB more than to have it
    model, *aliases = settings.model_names
    info = ModelInfo(
        model=model,
        engine=settings.engine,
        config=config,
        tokenizer=tokenizer,
        template=template,
        max_context_token_count=engine.context_length,
        max_image_count=settings.max_image_count,
        max_upload_seconds=settings.max_upload_seconds,
        created_unix_seconds=created,
        aliases=tuple(aliases),
        allows_priority=settings.allow_priority,
        checkpoint=fingerprint,
    )
    return info, engine


def make_service(
    settings: Settings,
    info: ModelInfo,
    engine: LLMEngine,
    metrics: Metrics,
    memory: SlotReader | None = None,
) -> Service:
    """Returns the gRPC service over an engine; without memory all embeddings come in chunks.

    Raises:
        EmbeddingKeyError: the key cannot be used.
    """
    max_byte_count = settings.max_table_byte_count
    arena = _arena(engine, max_byte_count)
    tables = TableCache(max_byte_count, embedding_key(settings), memory, arena)
    pacing = Pacing(settings.max_messages_per_second)
    servicer = LLMServicer(Generator(info, engine, tables, metrics, pacing))
    return Service(
        name=SERVICE_NAME,
        register=servicer.register,
        is_healthy=engine.is_healthy,
        max_call_count=settings.max_call_count,
        reflection=settings.reflection,
        metrics=metrics,
    )


def _arena(engine: LLMEngine, byte_count: int) -> TableArena:
    if isinstance(engine, ProcessEngine):
        return engine.arena
    return page_locked_arena(byte_count)


def embedding_key(settings: Settings) -> EmbeddingKey | None:
    """Returns the key that embeddings must be signed with; warns if others may send any."""
    key = read_embedding_key(settings)
    if key is None and not is_loopback(settings.host):
        logger.warning(
            "embeddings_unsigned",
            host=settings.host,
            warning="whoever reaches this service can send it rows for any image;"
            " --embedding-key-file lets only vision services do that",
        )
    return key


if __name__ == "__main__":
    main()
