"""A vision engine behind a link, whose other end is a thread of this process."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from protos.process.engine_link import EngineLink
from vision_service.engines.base import VisionEngine
from vision_service.engines.process.engine import ProcessEngine
from vision_service.engines.process.host import HostedVisionEngine
from vision_service.engines.process.messages import SlotLayout
from vision_service.engines.process.slots import SlotMemory

POLL_SECONDS = 0.01


@contextmanager
def linked(engine: VisionEngine, layout: SlotLayout) -> Iterator[ProcessEngine]:
    """Yields what a service has of an engine that a host has; the host ends as a process would."""
    hosted = HostedVisionEngine(engine, layout)
    ours, theirs = socket.socketpair()
    thread = threading.Thread(target=lambda: asyncio.run(_host(hosted, EngineLink(theirs))))
    thread.start()
    link = EngineLink(ours)
    frame = link.receive()
    assert frame is not None
    remote = ProcessEngine(link, hosted.facts, SlotMemory(frame.descriptors[0], layout))
    os.close(frame.descriptors[0])
    try:
        yield remote
    finally:
        remote.close()
        thread.join()


async def _host(hosted: HostedVisionEngine, link: EngineLink) -> None:
    over = asyncio.Event()
    hosted.begin(link)
    link.listen(hosted.receive, over.set)
    while hosted.poll() and not over.is_set():
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(over.wait(), POLL_SECONDS)
    link.close()
    await hosted.close()
