"""Sequences that generate side by side for as long as somebody watches."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import Any

from llm_service.engines.base import LLMEngine, Prompt
from tests.benchmarks.timeline import Timeline, follow


class Crowd:
    """Running sequences, each past its first token."""

    def __init__(self, timelines: Sequence[Timeline], tasks: Sequence[asyncio.Task[None]]) -> None:
        self._timelines = timelines
        self._tasks = tasks

    async def watch(self, seconds: float) -> list[float]:
        """Returns how long each step took that ended within the coming seconds.

        Raises:
            ValueError: a sequence has ended, or there were no two steps.
            ServiceError: the engine failed.
        """
        begin = time.perf_counter()
        await asyncio.sleep(seconds)
        _check_running(self._tasks)
        arrivals = [moment for moment in self._timelines[0].arrivals if moment >= begin]
        if len(arrivals) < 2:
            raise ValueError(f"{len(arrivals)} steps in {seconds} seconds")
        return [later - earlier for earlier, later in pairwise(arrivals)]


@asynccontextmanager
async def crowd(
    engine: LLMEngine, prompts: Sequence[Prompt], max_tokens: int
) -> AsyncIterator[Crowd]:
    """Yields once every prompt has its first token; afterwards all sequences are cancelled."""
    timelines = [Timeline() for _ in prompts]
    tasks = [
        asyncio.create_task(follow(engine, prompt, max_tokens, timeline))
        for prompt, timeline in zip(prompts, timelines, strict=True)
    ]
    begun = asyncio.gather(*(timeline.has_begun.wait() for timeline in timelines))
    waiting: list[asyncio.Future[Any]] = [begun, *tasks]
    try:
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        _check_running(tasks)
        yield Crowd(timelines, tasks)
    finally:
        for future in waiting:
            future.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)


def _check_running(tasks: Sequence[asyncio.Task[None]]) -> None:
    for task in tasks:
        if task.done():
            task.result()
            raise ValueError("a sequence has ended too early: it needs more tokens")
