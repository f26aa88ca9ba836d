"""The host's end: an engine, served to the LLM service at the other end of a link."""

from __future__ import annotations

import asyncio
import json
import os
import threading
from collections.abc import Callable, Sequence
from contextlib import aclosing, suppress
from functools import partial
from typing import Any
from weakref import WeakValueDictionary

import msgspec
import structlog
import torch

from llm_service.engines.base import Account, EngineLoad, EngineStartError, LLMEngine, Request
from llm_service.engines.create import create_engine
from llm_service.engines.process.messages import (
    Checked,
    CheckGuide,
    ErrorMessage,
    Facts,
    Generate,
    Leave,
    Output,
    Step,
    TableLeft,
    ToHost,
    error_message,
    guide_of,
    output_message,
    params_of,
    prompt_of,
)
from llm_service.engines.process.tables import table_of
from llm_service.engines.steps import Message, StepEngine
from llm_service.model import read_model
from llm_service.settings import Settings
from llm_service.table_arena import mapped, page_lock
from protos.checkpoint.section import CheckpointError
from protos.errors import ServiceError
from protos.process.allocator import give_back_freed_memory
from protos.process.engine_link import EngineLink, Frame
from protos.process.settings import built

logger = structlog.get_logger()

START_ERRORS = (CheckpointError, EngineStartError, OSError)


def start(settings: bytes, descriptors: tuple[int, ...]) -> HostedLLMEngine:
    """Loads the engine of a service's settings; the descriptor is its arena's."""
    options = built(Settings, json.loads(settings))
    config, tokenizer, _ = read_model(options)
    engine = create_engine(options, config, tokenizer)
    give_back_freed_memory()
    (number,) = descriptors
    arena = mapped(number, options.max_table_byte_count)
    os.close(number)
    page_lock(arena)
    return HostedLLMEngine(engine, arena)


class HostedLLMEngine:
    """An engine that serves a link. It is the sink of a StepEngine: its thread sends the frames.

    A task a request sees to what takes time before the engine has it, as its guide does; and to all
    of it where the engine hands out one output at a time.
    """

    def __init__(self, engine: LLMEngine, arena: torch.Tensor) -> None:
        """Takes the engine, and the memory [bytes] uint8 in which prompt tables come."""
        self._engine = engine
        self._arena = arena
        self.facts = Facts(engine.context_length, engine.load())
        self._decoder = msgspec.msgpack.Decoder(ToHost)
        self._accounts: WeakValueDictionary[int, Account] = WeakValueDictionary()
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._leaves: dict[int, Callable[[], None]] = {}
        self._checks: set[asyncio.Task[None]] = set()
        # Those whose start the service does not know of yet; the loop's and the engine thread's.
        self._unstarted: dict[int, Account] = {}
        self._telling = threading.Lock()
        self._told = self.facts.load

    def begin(self, link: EngineLink) -> None:
        self._link = link
        self._loop = asyncio.get_running_loop()
        if isinstance(self._engine, StepEngine):
            self._engine.watch(self)

    def receive(self, frame: Frame) -> None:
        message = self._decoder.decode(frame.data)
        match message:
            case Generate():
                self._begin(message, frame.descriptors)
            case Leave(key):
                self._leave(key)
            case CheckGuide():
                check = asyncio.create_task(self._check(message))
                self._checks.add(check)
                check.add_done_callback(self._checks.discard)

    def poll(self) -> bool:
        if self._engine.load() != self._told:
            self._tell([])
        return self._engine.is_healthy()

    async def close(self) -> None:
        for task in (*self._tasks.values(), *self._checks):
            task.cancel()
        await self._engine.close()

    def put(self, messages: Sequence[Message]) -> None:
        """Tells the service what a step has for it; and of the load where its turns depend on it.

        The engine's thread calls it, thrice a step.
        """
        if messages or self._has_news():
            self._tell(messages)

    def _tell(self, messages: Sequence[Message]) -> None:
        outputs: list[Output] = []
        faults: list[tuple[int, ErrorMessage]] = []
        for key, output in messages:
            if isinstance(output, ServiceError):
                faults.append((key, error_message(output)))
            else:
                outputs.append(output_message(key, output))
        with self._telling:  # what is sent later is no older
            load = self._told = self._engine.load()
            is_healthy = self._engine.is_healthy()
            self._link.send(Step(outputs, faults, self._take_started(), load, is_healthy))

    def _has_news(self) -> bool:
        is_started = any(each.started_at is not None for each in [*self._unstarted.values()])
        return is_started or _turns(self._engine.load()) != _turns(self._told)

    def _take_started(self) -> list[tuple[int, float]]:
        started = [
            (key, account.started_at)
            for key, account in self._unstarted.copy().items()
            if account.started_at is not None
        ]
        for key, _ in started:
            self._unstarted.pop(key, None)
        return started

    def _begin(self, message: Generate, descriptors: Sequence[int]) -> None:
        key = message.key
        leave_table = partial(_leave_table, self._loop, self._link, key)
        table = table_of(message.table, descriptors, self._arena, leave_table)
        account = self._accounts.setdefault(message.account, Account())
        request = Request(
            prompt_of(message, table),
            params_of(message),
            message.priority,
            message.deadline,
            account,
        )
        self._unstarted[key] = account
        self._tasks[key] = asyncio.create_task(self._generate(key, request))

    async def _generate(self, key: int, request: Request) -> None:
        told: list[Message] = []
        try:
            if isinstance(self._engine, StepEngine):
                self._leaves[key] = await self._engine.submit(request, self, key)
                return
            async with aclosing(self._engine.generate(request)) as outputs:
                async for output in outputs:
                    told = [(key, output)]
                    if output.finish_reason is None:
                        self._tell(told)
            self._tell(told)  # the last one, with the load after it
        except ServiceError as error:
            self._tell([(key, error)])
        except Exception as error:
            logger.error("request_failed", error=str(error), exc_info=error)
            self._tell([(key, ServiceError("the request has failed in the engine's process"))])

    def _leave(self, key: int) -> None:
        self._tasks.pop(key).cancel()
        self._unstarted.pop(key, None)
        if (leave := self._leaves.pop(key, None)) is not None:
            leave()

    async def _check(self, message: CheckGuide) -> None:
        error = None
        try:
            await self._engine.check_guide(guide_of(message.guide))
        except ServiceError as refusal:
            error = error_message(refusal)
        self._link.send(Checked(message.key, error))


def _turns(load: EngineLoad) -> tuple[Any, ...]:
    """Returns what decides when a newcomer's turn comes."""
    return load.running_sequence_count, load.startable_sequence_count, load.preemption_count


def _leave_table(loop: asyncio.AbstractEventLoop, link: EngineLink, key: int) -> None:
    # A table's end may come in the middle of anything, also of a `send` of this thread.
    with suppress(RuntimeError):  # a closed loop: the service has gone
        loop.call_soon_threadsafe(link.send, TableLeft(key))
