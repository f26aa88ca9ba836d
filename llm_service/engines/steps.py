"""Engines that hand on all outputs of a step at once, from a thread of their own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from llm_service.engines.base import LLMEngine, Request, TokenOutput
from protos.errors import ServiceError

# Whose it is, as its sink knows it, and what has come.
Message = tuple[Any, TokenOutput | ServiceError]


class OutputSink(Protocol):
    """Takes what an engine's thread has for callers. It holds up the thread, so it is quick."""

    def put(self, messages: Sequence[Message]) -> None:
        """Takes what a step has for callers of this sink."""
        ...


@runtime_checkable
class StepEngine(LLMEngine, Protocol):
    """An LLMEngine whose outputs can be had a step at a time, on the engine's thread."""

    def watch(self, sink: OutputSink) -> None:
        """Has a sink called whenever the load has been published, if only with nothing."""
        ...

    async def submit(self, request: Request, sink: OutputSink, key: Any) -> Callable[[], None]:
        """Has the outputs of a request put into a sink, by its key, until one that finishes it.

        Errors as of `generate`, but for the end of its time, which is the caller's to watch; those
        that come later are put into the sink.

        Returns:
            What must be called once, in the event loop: it cancels the sequence if it still runs.
        """
        ...


@dataclass(frozen=True)
class QueueSink:
    """Puts outputs into OutputQueues of one event loop, the keys, and wakes it once a step."""

    loop: asyncio.AbstractEventLoop

    def put(self, messages: Sequence[Message]) -> None:
        """Takes what a step has for callers in this loop; a closed loop has none left."""
        with suppress(RuntimeError):
            self.loop.call_soon_threadsafe(_put_all, messages)


def _put_all(messages: Sequence[Message]) -> None:
    for queue, output in messages:
        queue.put(output)
