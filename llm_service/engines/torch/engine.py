"""The torch engine: one thread that schedules, runs and samples, and the async side of it."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import closing, suppress
from functools import partial
from itertools import count, groupby, takewhile
from operator import attrgetter
from queue import SimpleQueue
from typing import Any

import structlog
import torch

from llm_service.checkpoint import LLMConfig
from llm_service.engines.admission import (
    alarm,
    check_queue,
    check_tokens,
    engine_dead,
    output_room,
    seconds_left,
)
from llm_service.engines.base import (
    DraftTotals,
    EngineLoad,
    Prompt,
    Request,
    RowsNeededError,
    StepTotals,
    TokenOutput,
)
from llm_service.engines.guides import GuideCompiler
from llm_service.engines.output_queue import OutputQueue
from llm_service.engines.steps import Message, OutputSink, QueueSink
from llm_service.engines.torch.finiteness import not_finite
from llm_service.engines.torch.mask_pool import MaskPool
from llm_service.engines.torch.model_runner import ModelRunner
from llm_service.engines.torch.prompt_scores import ScoredPrompt
from llm_service.engines.torch.scheduler import Scheduler
from llm_service.engines.torch.sequence import Sequence, Status
from llm_service.engines.torch.step_outputs import SampledToken, StepOutputs
from llm_service.engines.torch.streams import use_stream
from llm_service.sampling import OutputGuide, SamplingParams
from protos.errors import NonFiniteError, OverloadedError, ServiceError
from protos.process.memory import is_out_of_memory

# Of the first prompt: over several blocks, and of ids from the whole vocabulary.
WARM_UP_TOKEN_COUNT = 40
RETRY_AFTER_SECONDS = 1.0
logger = structlog.get_logger()


class TorchEngine:
    """A StepEngine with a thread of its own.

    The thread owns scheduler, runner and all sequences. The event loop posts calls to its inbox
    (add a sequence, abort one, stop), and the thread puts outputs into sinks; there are no locks.
    Besides that the thread publishes plain values that others read: its load, and whether it has
    ended. It sets the latter before it empties its inbox for the last time, and `submit` reads it
    after posting, so no request can fall between the two.

    A sequence whose logits are no numbers ends, and the others go on. What it has computed nobody
    shares any more; who has done so, and so has no numbers either, is computed anew.
    """

    def __init__(
        self,
        config: LLMConfig,
        scheduler: Scheduler,
        runner: ModelRunner,
        guides: GuideCompiler,
        max_waiting_count: int,
        max_draft_count: int = 0,
    ) -> None:
        """Runs a first sequence, and starts the thread.

        Raises:
            NonFiniteError: its logits are not finite.
            OverloadedError: there is no memory for it.
        """
        blocks = scheduler.blocks
        self._config = config
        self._scheduler = scheduler
        self._runner = runner
        self._guides = guides
        self._max_waiting_count = max_waiting_count
        self._max_draft_count = max_draft_count
        self._total_kv_token_count = blocks.block_count * blocks.block_size
        self.context_length = min(config.max_position_embeddings, self._total_kv_token_count)
        self._request_count = 0  # the event loop's
        self._arrivals = count()  # the event loop's
        # The thread's:
        self._callers: dict[Sequence, tuple[OutputSink, Any]] = {}
        self._watchers: list[OutputSink] = []
        # With all of a step's sequences: the device may still be copying the prompt table of one
        # whose request is over, and its memory must not become another's meanwhile.
        self._in_flight: deque[tuple[list[Sequence], StepOutputs]] = deque()
        self._steps = StepTotals()
        self._drafts = DraftTotals() if max_draft_count else None
        self._is_stalled = False
        self._stopping = False
        self._ended = False
        self._inbox: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._masks = MaskPool(config.vocabulary_size, self._inbox.put)
        self._warm_up()
        self._publish_load()
        self._thread = threading.Thread(target=self._run, name="torch-engine", daemon=True)
        self._thread.start()

    async def generate(self, request: Request) -> AsyncGenerator[TokenOutput, None]:
        with closing(OutputQueue(request.pacing)) as outputs:
            leave = await self.submit(request, QueueSink(asyncio.get_running_loop()), outputs)
            try:
                with alarm(outputs, request.deadline):
                    async for output in outputs:
                        yield output
            finally:
                leave()

    async def submit(self, request: Request, sink: OutputSink, key: Any) -> Callable[[], None]:
        check_tokens(request, self._config)
        max_tokens = output_room(request.prompt, request.params.max_tokens, self.context_length)
        sequence = await self._sequence(request, max_tokens)
        waiting_count = self.load().waiting_sequence_count
        account = request.account
        check_queue(waiting_count, self._max_waiting_count, account, has_ended=self._ended)
        seconds_left(request.deadline)
        self._request_count += 1
        account.sequence_count += 1
        leave = partial(self._leave, sequence)
        self._inbox.put(partial(self._add, sequence, sink, key))
        if self._ended:
            leave()
            raise engine_dead()
        return leave

    def watch(self, sink: OutputSink) -> None:
        self._watchers.append(sink)

    async def check_guide(self, guide: OutputGuide) -> None:
        await self._guides.compiled(guide)

    def load(self) -> EngineLoad:
        """Returns the load; a request that the thread has not seen yet counts as waiting."""
        running = self._running_count
        return EngineLoad(
            running_sequence_count=running,
            waiting_sequence_count=max(0, self._request_count - running),
            free_kv_token_count=self._free_kv_token_count,
            total_kv_token_count=self._total_kv_token_count,
            steps=self._steps,
            startable_sequence_count=self._startable_count,
            preemption_count=self._preemption_count,
            drafts=self._drafts,
            host_cache=self._host_cache_load,
        )

    def is_healthy(self) -> bool:
        return not self._ended

    async def close(self) -> None:
        self._guides.close()
        self._inbox.put(self._stop)
        await asyncio.to_thread(self._thread.join)

    async def _sequence(self, request: Request, max_tokens: int) -> Sequence:
        prompt, params = request.prompt, request.params
        matcher = None
        if params.guide is not None:
            matcher = await self._guides.matcher(
                params.guide, params.stop_token_ids, request.account
            )
        return Sequence(
            prompt,
            params,
            max_tokens,
            self._config.vocabulary_size,
            order=(-request.priority, next(self._arrivals)),
            matcher=matcher,
            account=request.account,
            max_draft_count=self._max_draft_count,
        )

    def _leave(self, sequence: Sequence) -> None:
        self._request_count -= 1
        sequence.account.sequence_count -= 1
        self._inbox.put(partial(self._abort, sequence))

    def _add(self, sequence: Sequence, sink: OutputSink, key: Any) -> None:
        self._callers[sequence] = (sink, key)
        self._masks.order([sequence])
        self._scheduler.add(sequence)

    def _abort(self, sequence: Sequence) -> None:
        """Frees a sequence whose caller has gone; one that has finished is free already."""
        if self._callers.pop(sequence, None) is not None and not self._ended:
            self._scheduler.finish(sequence)
            if sequence.mask is not None:
                sequence.mask.is_wanted = False

    def _stop(self) -> None:
        self._stopping = True

    def _warm_up(self) -> None:
        """Reads a prompt and generates two tokens: both kinds of step run once."""
        vocabulary_size = self._config.vocabulary_size
        count = max(1, min(WARM_UP_TOKEN_COUNT, self.context_length - 2))
        token_ids = [place * vocabulary_size // WARM_UP_TOKEN_COUNT for place in range(count)]
        prompt = Prompt(token_ids, torch.empty(0, self._config.hidden_size))
        sequence = Sequence(prompt, SamplingParams(), 2, vocabulary_size)
        self._scheduler.add(sequence)
        while self._scheduler.has_work:
            self._step()
        if sequence.fault is not None:
            raise sequence.fault

    def _run(self) -> None:
        try:
            use_stream(self._runner.stream)
            while self._take_calls():
                if self._scheduler.has_work:
                    self._step()
                else:
                    self._publish_load()
                    self._tell({})
        except Exception as error:
            # Whatever it is: in the log it has its traceback, and `_end` tells the callers.
            logger.error("engine_died", error=str(error), exc_info=error)
        finally:
            self._end()

    def _take_calls(self) -> bool:
        """Makes the calls of the inbox, waiting for one while there is nothing to compute.

        The masks that all sequences may be waiting for come with a call.
        """
        if self._is_stalled or not self._scheduler.has_work:
            self._inbox.get()()
        while not self._inbox.empty():
            self._inbox.get()()
        return not self._stopping

    def _step(self) -> None:
        """Schedules, runs, and takes what has come out.

        Where the runner overlaps, that is the step before: this one was prepared while the device
        worked on it, and one token of each sequence is in flight.
        """
        started = time.perf_counter()
        scheduled = self._scheduler.schedule()
        token_count = sum(sequence.scheduled_count for sequence in scheduled)
        self._publish_load()
        self._tell({sequence: _rows_needed() for sequence in self._scheduler.take_unreadable()})
        if scheduled:
            self._launch(scheduled)
        awaited = len(self._in_flight) > self._runner.overlaps or not scheduled
        if self._in_flight and awaited:
            _, outputs = self._in_flight[0]
            sampled = outputs.read()
            self._in_flight.popleft()
            if scored := outputs.read_scores():
                self._deliver_scores(scored)
            self._deliver(sampled)
        self._is_stalled = not (scheduled or self._in_flight) and self._scheduler.awaits_masks
        self._steps = self._steps.after(time.perf_counter() - started, token_count)

    def _launch(self, scheduled: list[Sequence]) -> None:
        """Has a step computed; one that there is no memory for ends its sequences alone."""
        try:
            outputs = self._runner.run(scheduled)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            logger.error("step_out_of_memory", error=str(error), exc_info=error)
            for sequence in scheduled:
                self._fail(sequence, _out_of_memory(len(scheduled)))
            return
        self._in_flight.append((scheduled, outputs))
        for sequence in scheduled:
            sequence.mark_launched()

    def _deliver_scores(self, scored: list[ScoredPrompt]) -> None:
        """Tells callers of their prompts.

        Scores are a sequence's own work; where they are not finite, that is nobody else's fault.
        """
        for prompt in scored:
            if not prompt.is_finite and prompt.sequence.status is not Status.FINISHED:
                self._fail(prompt.sequence, NonFiniteError(not_finite(self._runner.dtype)))
        self._tell(
            {
                prompt.sequence: TokenOutput([], None, prompt_logprobs=prompt.table)
                for prompt in scored
            }
        )

    def _deliver(self, sampled: list[SampledToken]) -> None:
        """Appends the new tokens, frees what has finished, and only then tells the callers.

        A sequence that has ended since its step began gets no token any more.
        """
        if self._drafts is None:
            outputs = {
                token.sequence: self._taken(token) for token in sampled if self._counts(token)
            }
        else:
            outputs = self._verified(sampled)
        self._masks.order(
            sequence for sequence in outputs if sequence.status is not Status.FINISHED
        )
        self._publish_load()
        self._tell(outputs)

    def _taken(self, token: SampledToken) -> TokenOutput | ServiceError:
        """Appends a sequence's next token; returns what to tell of it."""
        sequence = token.sequence
        sequence.append(token.token_id)
        failure = sequence.failure
        if failure is not None or sequence.finish_reason is not None:
            self._scheduler.finish(sequence)
        return failure or TokenOutput(
            [token.token_id],
            sequence.finish_reason,
            sequence.cached_count or 0,
            () if token.logprob is None else (token.logprob,),
        )

    def _verified(self, sampled: list[SampledToken]) -> dict[Sequence, TokenOutput | ServiceError]:
        """Appends the next tokens of sequences that may have drafts, and has drafts guessed."""
        groups = [list(tokens) for _, tokens in groupby(sampled, attrgetter("sequence"))]
        outputs = {
            tokens[0].sequence: self._taken_of(tokens)
            for tokens in groups
            if self._counts(tokens[0])
        }
        for sequence in outputs:
            if sequence.status is not Status.FINISHED:
                sequence.guess()
        return outputs

    def _taken_of(self, tokens: list[SampledToken]) -> TokenOutput | ServiceError:
        """Appends what a step has sampled of one sequence; returns what to tell of it."""
        sequence, draft_count = tokens[0].sequence, len(tokens[0].sequence.verified)
        finite = tokens
        if len(tokens) > 1:
            finite = list(takewhile(attrgetter("is_finite"), tokens))
        count = sequence.extend([token.token_id for token in finite])
        if self._drafts is not None:
            draft_count -= len(sequence.verified)  # those of a later step are still in flight
            self._drafts = self._drafts.after(draft_count, count - 1)
        if count > 1:
            self._scheduler.blocks.register(sequence)
        if sequence.has_ended:
            self._scheduler.finish(sequence)
        elif len(finite) < len(tokens):
            # No kernel must read what a draft has left: a NaN, times 0, is NaN.
            self._scheduler.restart(sequence)
        return _output(finite[:count])

    def _counts(self, token: SampledToken) -> bool:
        """Returns whether a token is its sequence's next one; where it is none, sees to that."""
        sequence = token.sequence
        if sequence.status is Status.FINISHED:
            return False
        if token.is_finite and not sequence.void_count:
            return True
        is_void = sequence.void_count > 0
        sequence.drop()
        if not is_void:
            self._recover(sequence)
        return False

    def _recover(self, sequence: Sequence) -> None:
        """Ends a sequence whose logits are not finite, or gives it one more chance.

        They may be another's fault, of which it shares blocks, or a draft's: see `_taken_of`.
        """
        if sequence.shared_count or sequence.verified:
            self._scheduler.blocks.forget(sequence)
            self._scheduler.restart(sequence)
        else:
            self._fail(sequence, NonFiniteError(not_finite(self._runner.dtype)))

    def _fail(self, sequence: Sequence, fault: ServiceError) -> None:
        """Ends a sequence; nobody shares its blocks any more."""
        sequence.fault = fault
        self._scheduler.blocks.forget(sequence)
        self._scheduler.finish(sequence)
        self._tell({sequence: fault})

    def _tell(self, outputs: Mapping[Sequence, TokenOutput | ServiceError]) -> None:
        """Hands outputs to their callers: one call of a sink for all of them."""
        messages: dict[OutputSink, list[Message]] = {sink: [] for sink in self._watchers}
        for sequence, output in outputs.items():
            if sequence in self._callers:
                sink, key = self._callers[sequence]
                messages.setdefault(sink, []).append((key, output))
            if isinstance(output, ServiceError) or output.finish_reason is not None:
                self._callers.pop(sequence, None)
        for sink, of_sink in messages.items():
            sink.put(of_sink)

    def _publish_load(self) -> None:
        blocks = self._scheduler.blocks
        self._running_count = len(self._scheduler.running)
        self._free_kv_token_count = blocks.free_count * blocks.block_size
        self._startable_count = self._scheduler.startable_count
        self._preemption_count = self._scheduler.preemption_count
        self._host_cache_load = blocks.host_cache_load

    def _end(self) -> None:
        """Fails every request that is in the engine or was posted before it ended."""
        self._ended = True
        while not self._inbox.empty():
            with suppress(BaseException):  # of further masks: the first has ended the engine
                self._inbox.get()()
        self._tell({sequence: engine_dead() for sequence in self._callers})
        self._masks.close()


def _output(tokens: list[SampledToken]) -> TokenOutput | ServiceError:
    sequence = tokens[0].sequence
    return sequence.failure or TokenOutput(
        token_ids=[token.token_id for token in tokens],
        finish_reason=sequence.finish_reason,
        cached_token_count=sequence.cached_count or 0,
        logprobs=tuple(token.logprob for token in tokens if token.logprob is not None),
    )


def _out_of_memory(sequence_count: int) -> OverloadedError:
    return OverloadedError(
        f"there was no memory for a step of {sequence_count} sequences; fewer or shorter ones may"
        " fit",
        retry_after=RETRY_AFTER_SECONDS,
    )


def _rows_needed() -> RowsNeededError:
    return RowsNeededError(
        "the KV cache has dropped an image that the request relies on", retry_after=0.0
    )
