"""From settings to an engine in another process."""

from __future__ import annotations

import os

import msgspec
import structlog
import torch

from llm_service.engines.base import EngineStartError
from llm_service.engines.process.engine import ProcessEngine
from llm_service.engines.process.messages import Facts
from llm_service.settings import Settings
from llm_service.table_arena import SharedArena
from protos.process.engine_link import (
    HostFailedError,
    Start,
    await_host_end,
    await_ready,
    open_link,
)
from protos.process.supervisor import supervisor

logger = structlog.get_logger()

PART = "llm_service.engines.process.host"
PROGRAM = "llm_service.engines.process"
# What mpirun's processes have: Open MPI's, and that of others.
MPI_VARIABLES = ("OMPI_COMM_WORLD_RANK", "PMI_RANK")


def is_elsewhere(settings: Settings) -> bool:
    """Returns whether the settings have the engine in another process."""
    if settings.engine_process != "auto":
        return settings.engine_process != "none"
    is_on_cuda = settings.torch.device != "cpu" and torch.cuda.is_available()
    return settings.engine == "torch" and is_on_cuda


def start_engine(settings: Settings) -> ProcessEngine:
    """Starts the engine in the process that the settings name, and waits until it is warm.

    Raises:
        EngineStartError: there is no such process, or the engine cannot run there.
    """
    if settings.engine == "tensorrt_llm" and any(name in os.environ for name in MPI_VARIABLES):
        raise EngineStartError(
            "engine_process is not none, but mpirun starts this service as one of its ranks, which"
            " have their part of the engine themselves: serve it with --engine-process none"
        )
    try:
        arena = SharedArena(settings.max_table_byte_count)
        link, process = open_link(settings.engine_process, PART, PROGRAM)
    except OSError as error:
        place = settings.engine_process
        raise EngineStartError(f"engine_process is {place}, but: {error}") from error
    try:
        facts = await_ready(
            link, Start.of(PART, settings), (arena.file.number,), supervisor().works
        )
    except HostFailedError as error:
        link.close()
        if process is not None:
            await_host_end(process)
        raise EngineStartError(str(error)) from error
    logger.info("engine_process", pid=None if process is None else process.pid)
    return ProcessEngine(link, msgspec.msgpack.decode(facts, type=Facts), arena, process)
