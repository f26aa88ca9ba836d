"""The torch engine: one thread that schedules, runs and samples, and the async side of it."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncGenerator, Callable
from functools import partial
from queue import SimpleQueue

import structlog
import torch

from llm_service.checkpoint import LLMConfig
from llm_service.engines import EngineLoad, Prompt, TokenOutput
from llm_service.engines.torch_engine.admission import check_tokens, output_room
from llm_service.engines.torch_engine.model_runner import ModelRunner
from llm_service.engines.torch_engine.sampler import sample
from llm_service.engines.torch_engine.scheduler import Scheduler
from llm_service.engines.torch_engine.sequence import Sequence
from llm_service.sampling import SamplingParams
from protos.errors import EngineDeadError, OverloadedError, ServiceError

logger = structlog.get_logger()

RETRY_AFTER_SECONDS = 1.0

Emit = Callable[[TokenOutput | ServiceError], None]


class TorchEngine:
    """See LLMEngine.

    The thread owns scheduler, runner and all sequences. The event loop posts calls to its inbox
    (add a sequence, abort one, stop) and gets outputs by `call_soon_threadsafe`; there are no
    locks. Besides that the thread publishes plain values that the loop reads: its load, and whether
    it has ended. It sets the latter before it empties its inbox for the last time, and `generate`
    reads it after posting, so no request can fall between the two.
    """

    def __init__(
        self, config: LLMConfig, scheduler: Scheduler, runner: ModelRunner, max_waiting: int
    ) -> None:
        blocks = scheduler.blocks
        self._config = config
        self._scheduler = scheduler
        self._runner = runner
        self._max_waiting = max_waiting
        self._total_kv_tokens = blocks.block_count * blocks.block_size
        self._context = min(config.max_position_embeddings, self._total_kv_tokens)
        self._request_count = 0  # the event loop's
        self._emits: dict[Sequence, Emit] = {}  # the thread's
        self._stopping = False  # the thread's
        self._ended = False
        self._inbox: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._warm_up()
        self._publish_load()
        self._thread = threading.Thread(target=self._run, name="torch-engine", daemon=True)
        self._thread.start()

    async def generate(
        self, prompt: Prompt, params: SamplingParams
    ) -> AsyncGenerator[TokenOutput, None]:
        """See LLMEngine."""
        check_tokens(prompt, params, self._config)
        max_tokens = output_room(len(prompt.token_ids), params.max_tokens, self._context)
        self._check_queue()
        sequence = Sequence(prompt, params, max_tokens)
        outputs: asyncio.Queue[TokenOutput | ServiceError] = asyncio.Queue()
        emit = partial(_emit, asyncio.get_running_loop(), outputs)
        self._request_count += 1
        self._inbox.put(partial(self._add, sequence, emit))
        try:
            if self._ended:
                raise _dead()
            finished = False
            while not finished:
                output = await outputs.get()
                if isinstance(output, ServiceError):
                    raise output
                yield output
                finished = output.finish_reason is not None
        finally:
            self._request_count -= 1
            self._inbox.put(partial(self._abort, sequence))

    def load(self) -> EngineLoad:
        """See LLMEngine; a request that the thread has not seen yet counts as waiting."""
        running = self._running_count
        return EngineLoad(
            running=running,
            waiting=max(0, self._request_count - running),
            free_kv_tokens=self._free_kv_tokens,
            total_kv_tokens=self._total_kv_tokens,
        )

    def is_healthy(self) -> bool:
        """See LLMEngine."""
        return not self._ended

    async def close(self) -> None:
        """See LLMEngine."""
        self._inbox.put(self._stop)
        await asyncio.to_thread(self._thread.join)

    def _check_queue(self) -> None:
        if self._ended:
            raise _dead()
        waiting = self.load().waiting
        if waiting >= self._max_waiting:
            raise OverloadedError(
                f"{waiting} sequences wait already; max_waiting_sequences is {self._max_waiting}",
                retry_after=RETRY_AFTER_SECONDS,
            )

    def _add(self, sequence: Sequence, emit: Emit) -> None:
        self._emits[sequence] = emit
        self._scheduler.add(sequence)

    def _abort(self, sequence: Sequence) -> None:
        """Frees a sequence whose caller has gone; one that has finished is free already."""
        if self._emits.pop(sequence, None) is not None and not self._ended:
            self._scheduler.finish(sequence)

    def _stop(self) -> None:
        self._stopping = True

    def _warm_up(self) -> None:
        """Reads a prompt of one token and generates two: both kinds of step run once."""
        no_rows = torch.empty(0, self._config.hidden_size)
        self._add(Sequence(Prompt([0], no_rows), SamplingParams(), max_tokens=2), lambda _: None)
        while self._scheduler.has_work:
            self._step()

    def _run(self) -> None:
        try:
            while self._take_calls():
                if self._scheduler.has_work:
                    self._step()
                else:
                    self._publish_load()
        except Exception as error:
            # Whatever it is: in the log it has its traceback, and `_end` tells the callers.
            logger.error("engine_died", exc_info=error)
        finally:
            self._end()

    def _take_calls(self) -> bool:
        """Makes the calls of the inbox, waiting for one while there is nothing to compute."""
        if not self._scheduler.has_work:
            self._inbox.get()()
        while not self._inbox.empty():
            self._inbox.get()()
        return not self._stopping

    def _step(self) -> None:
        sequences = self._scheduler.schedule()
        self._publish_load()
        logits = self._runner.run(sequences)
        sampled = [sequence for sequence in sequences if sequence.is_sampled]
        token_ids = sample(logits, sampled)
        for sequence in sequences:
            sequence.mark_computed()
        self._deliver(dict(zip(sampled, token_ids, strict=True)))

    def _deliver(self, token_ids: dict[Sequence, int]) -> None:
        """Appends the new tokens, frees what has finished, and only then tells the callers."""
        for sequence, token_id in token_ids.items():
            sequence.append(token_id)
            if sequence.finish_reason is not None:
                self._scheduler.finish(sequence)
        self._publish_load()
        for sequence, token_id in token_ids.items():
            emit = self._emits[sequence]
            if sequence.finish_reason is not None:
                del self._emits[sequence]
            emit(TokenOutput([token_id], sequence.finish_reason))

    def _publish_load(self) -> None:
        blocks = self._scheduler.blocks
        self._running_count = len(self._scheduler.running)
        self._free_kv_tokens = blocks.free_count * blocks.block_size

    def _end(self) -> None:
        """Fails every request that is in the engine or was posted before it ended."""
        self._ended = True
        while not self._inbox.empty():
            self._inbox.get()()
        for emit in self._emits.values():
            emit(_dead())


def _emit(
    loop: asyncio.AbstractEventLoop,
    outputs: asyncio.Queue[TokenOutput | ServiceError],
    output: TokenOutput | ServiceError,
) -> None:
    # A closed loop has no callers left.
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(outputs.put_nowait, output)


def _dead() -> EngineDeadError:
    return EngineDeadError("the language model engine has stopped working")
