"""Both real services in this process, each behind a port of its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NamedTuple

import llm_service.__main__ as llm_main
import vision_service.__main__ as vision_main
from llm_service.metrics import Metrics
from llm_service.settings import Settings as LLMSettings
from protos.process.server import Service, running_server
from protos.process.shared_memory import SlotReader, sharing
from vision_service.settings import Settings as VisionSettings


class Place(NamedTuple):
    """Where a service listens, how it ends, and how long a connection of a client lives."""

    host: str = "127.0.0.1"
    port: int = 0
    drain_seconds: float = 0.0
    notice_seconds: float = 0.0
    connection_age_seconds: float | None = None


ANYWHERE = Place()


@asynccontextmanager
async def running_vision(settings: VisionSettings, place: Place = ANYWHERE) -> AsyncIterator[str]:
    """Yields the address of a vision service."""
    config, engine = await asyncio.to_thread(vision_main.load, settings)
    async with (
        vision_main.shared_memory(settings) as memory,
        vision_main.open_service(settings, config, engine, memory) as service,
        _address(service, place) as address,
    ):
        yield address


@asynccontextmanager
async def running_llm(settings: LLMSettings, place: Place = ANYWHERE) -> AsyncIterator[str]:
    """Yields the address of an LLM service."""
    model, engine = await asyncio.to_thread(llm_main.load, settings)
    try:
        async with sharing(settings.shared_memory_folder, SlotReader.open) as memory:
            service = llm_main.make_service(settings, model, engine, Metrics(engine), memory)
            async with _address(service, place) as address:
                yield address
    finally:
        await engine.close()


@asynccontextmanager
async def _address(service: Service, place: Place) -> AsyncIterator[str]:
    async with running_server(
        service,
        place.host,
        place.port,
        place.drain_seconds,
        notice_seconds=place.notice_seconds,
        connection_age_seconds=place.connection_age_seconds,
    ) as port:
        yield f"{place.host}:{port}"
