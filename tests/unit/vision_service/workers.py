"""The processes that decode images: found, and waited for."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import psutil

from vision_service.decoding.process import PROGRAM

WAIT_SECONDS = 60.0


def worker_pids(service: int | None = None) -> list[int]:
    """Returns the processes of the workers of a service, by default this process."""
    pids = []
    for child in psutil.Process(service).children():
        try:
            if PROGRAM in child.cmdline():
                pids.append(child.pid)
        except psutil.Error:
            continue
    return pids


async def until(is_so: Callable[[], bool]) -> None:
    """Waits for something that happens soon, on any machine."""
    deadline = time.monotonic() + WAIT_SECONDS
    while not is_so():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)
