"""A host of an LLM engine in a thread of this process, where tests can hold its engine's steps."""

from __future__ import annotations

import asyncio
import socket
import threading
from contextlib import suppress

from llm_service.engines.base import LLMEngine
from llm_service.engines.process.engine import ProcessEngine
from llm_service.engines.process.host import HostedLLMEngine
from llm_service.table_arena import SharedArena, mapped
from protos.process.engine_link import EngineLink

ARENA_BYTE_COUNT = 1 << 22
POLL_SECONDS = 0.02


class ThreadedEngine(ProcessEngine):
    """An engine at the other end of a real link, which is in another thread.

    Attributes:
        host: the other end.
    """

    def __init__(self, engine: LLMEngine) -> None:
        """Takes the engine that it hosts, and closes with itself."""
        ours, theirs = socket.socketpair()
        arena = SharedArena(ARENA_BYTE_COUNT)
        self.host = HostedLLMEngine(engine, mapped(arena.file.number, ARENA_BYTE_COUNT))
        super().__init__(EngineLink(ours), self.host.facts, arena)
        # As in a process of its own, the engine is called from one loop alone.
        self._thread = threading.Thread(
            target=asyncio.run, args=(_serve(self.host, EngineLink(theirs)),)
        )
        self._thread.start()

    async def close(self) -> None:
        await super().close()
        await asyncio.to_thread(self._thread.join)


async def _serve(host: HostedLLMEngine, link: EngineLink) -> None:
    over = asyncio.Event()
    link.listen(host.receive, over.set)
    host.begin(link)
    while not over.is_set() and host.poll():
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(over.wait(), POLL_SECONDS)
    link.close()
    await host.close()
