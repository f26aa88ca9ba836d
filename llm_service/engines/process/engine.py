"""The service's end: an LLMEngine whose work another process does."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncGenerator
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import count
from weakref import WeakKeyDictionary

import msgspec
import structlog
import torch

from llm_service.engines.admission import alarm, engine_dead
from llm_service.engines.base import Account, EngineLoad, Request, TokenOutput
from llm_service.engines.output_queue import OutputQueue
from llm_service.engines.process.messages import (
    Checked,
    CheckGuide,
    Facts,
    Leave,
    Step,
    TableLeft,
    ToService,
    error_of,
    generate_message,
    guide_message,
    output_of,
)
from llm_service.engines.process.tables import table_message
from llm_service.sampling import OutputGuide
from llm_service.table_arena import SharedArena
from protos.errors import ServiceError
from protos.process.engine_link import EngineLink, Frame, await_host_end

logger = structlog.get_logger()


@dataclass(frozen=True)
class _Caller:
    """Who waits for a request's outputs."""

    outputs: OutputQueue
    account: Account


class ProcessEngine:
    """An LLMEngine at the other end of a link. All of it but `load` is for one event loop.

    Attributes:
        arena: memory that both processes map; prompt tables in it need not be copied. A table there
            stays until the host says that nobody reads it, however long its request has been over.
    """

    def __init__(
        self,
        link: EngineLink,
        facts: Facts,
        arena: SharedArena,
        process: subprocess.Popen[bytes] | None = None,
    ) -> None:
        """Takes a link whose host is ready; the process is its own host's, and ends with it."""
        self.context_length = facts.context_length
        self.arena = arena
        self._link = link
        self._load = facts.load
        self._process = process
        self._decoder = msgspec.msgpack.Decoder(ToService)
        self._keys = count()
        self._account_numbers: WeakKeyDictionary[Account, int] = WeakKeyDictionary()
        self._callers: dict[int, _Caller] = {}
        self._checks: dict[int, asyncio.Future[ServiceError | None]] = {}
        self._tables: dict[int, torch.Tensor] = {}
        self._listens = False
        self._ended = False

    async def generate(self, request: Request) -> AsyncGenerator[TokenOutput, None]:
        self._listen()
        if self._ended:
            raise engine_dead()
        key = next(self._keys)
        with closing(OutputQueue(request.pacing)) as outputs, alarm(outputs, request.deadline):
            self._send(key, request)
            self._callers[key] = _Caller(outputs, request.account)
            try:
                async for output in outputs:
                    yield output
            finally:
                del self._callers[key]
                self._link.send(Leave(key))

    async def check_guide(self, guide: OutputGuide) -> None:
        self._listen()
        if self._ended:
            raise engine_dead()
        key = next(self._keys)
        check = self._checks[key] = asyncio.get_running_loop().create_future()
        self._link.send(CheckGuide(key, guide_message(guide)))
        try:
            error = await check
        finally:
            del self._checks[key]
        if error is not None:
            raise error

    def load(self) -> EngineLoad:
        """Returns the load that the host has told last; what it has not seen yet waits."""
        load = self._load
        waiting_count = max(0, len(self._callers) - load.running_sequence_count)
        return replace(load, waiting_sequence_count=waiting_count)

    def is_healthy(self) -> bool:
        self._listen()
        return not self._ended

    async def close(self) -> None:
        self._fail_all()
        self._link.close()
        if self._process is not None:
            await asyncio.to_thread(await_host_end, self._process)

    def _listen(self) -> None:
        """Begins to, in the event loop that is the first to ask for anything."""
        if not self._listens:
            self._listens = True
            self._link.listen(self._receive, self._lose)

    def _send(self, key: int, request: Request) -> None:
        table, file = table_message(request.prompt, self.arena)
        account = self._account_numbers.setdefault(request.account, key)
        message = generate_message(key, request, table, account)
        self._link.send(message, () if file is None else (file.number,))
        if table.offset is not None:
            self._tables[key] = request.prompt.prompt_table

    def _receive(self, frame: Frame) -> None:
        message = self._decoder.decode(frame.data)
        match message:
            case Step():
                self._take(message)
            case TableLeft(key):
                del self._tables[key]
            case Checked(key, error):
                if key in self._checks and not self._checks[key].done():
                    self._checks[key].set_result(None if error is None else error_of(error))

    def _take(self, step: Step) -> None:
        self._load = step.load
        self._ended = self._ended or not step.is_healthy
        callers = self._callers
        for key, moment in step.started:
            if key in callers:
                callers[key].account.start(moment)
        for output in step.outputs:
            if output.key in callers:
                callers[output.key].outputs.put(output_of(output))
        for key, error in step.faults:
            if key in callers:
                callers[key].outputs.put(error_of(error))

    def _lose(self) -> None:
        logger.error(
            "engine_process_lost", pid=None if self._process is None else self._process.pid
        )
        self._fail_all()

    def _fail_all(self) -> None:
        self._ended = True
        for caller in self._callers.values():
            caller.outputs.put(engine_dead())
        for check in self._checks.values():
            if not check.done():
                check.set_result(engine_dead())
