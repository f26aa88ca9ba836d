"""A StepEngine that computes nothing, as a part of an engine host: what is left is handing on."""

from __future__ import annotations

import os
import threading
from collections.abc import AsyncGenerator, Callable
from functools import partial
from typing import Any

import torch

from llm_service.engines.base import EngineLoad, Request, TokenOutput
from llm_service.engines.process.host import HostedLLMEngine
from llm_service.engines.steps import Message, OutputSink
from llm_service.sampling import OutputGuide

START_ERRORS: tuple[type[Exception], ...] = ()
# Apart from the steps' own time: threads that wait for the interpreter's lock show in it.
STEP_SECONDS = 0.002


class SteppingEngine:
    """Gives each of its sequences a token a step, on a thread of its own, until it is left."""

    context_length = 4096

    def __init__(self) -> None:
        self._callers: dict[object, tuple[OutputSink, Any]] = {}
        self._watchers: list[OutputSink] = []
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def watch(self, sink: OutputSink) -> None:
        self._watchers.append(sink)

    async def submit(self, request: Request, sink: OutputSink, key: Any) -> Callable[[], None]:
        sequence = object()
        self._callers[sequence] = (sink, key)
        return partial(self._leave, sequence)

    async def check_guide(self, guide: OutputGuide) -> None:
        pass

    def load(self) -> EngineLoad:
        return EngineLoad(len(self._callers), 0, 0, 0)

    def is_healthy(self) -> bool:
        return True

    async def close(self) -> None:
        self._stopping.set()
        self._thread.join()

    def generate(self, request: Request) -> AsyncGenerator[TokenOutput, None]:
        raise NotImplementedError

    def _leave(self, sequence: object) -> None:
        del self._callers[sequence]

    def _run(self) -> None:
        while not self._stopping.wait(STEP_SECONDS):
            messages: dict[OutputSink, list[Message]] = {}
            for sink, key in [*self._callers.values()]:
                messages.setdefault(sink, []).append((key, TokenOutput([5], None)))
            for sink, of_sink in messages.items():
                sink.put(of_sink)


def start(settings: bytes, descriptors: tuple[int, ...]) -> HostedLLMEngine:
    """Returns the engine for an engine host; its arena is empty."""
    for number in descriptors:
        os.close(number)
    return HostedLLMEngine(SteppingEngine(), torch.empty(0, dtype=torch.uint8))
