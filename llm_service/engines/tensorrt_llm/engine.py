"""The async side of the executor: requests in, streams of token ids out."""

from __future__ import annotations

import asyncio
import contextlib
import math
import threading
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass
from datetime import timedelta
from itertools import count

import structlog
import torch
from msgspec.structs import replace
from tensorrt_llm.bindings import executor

from llm_service.checkpoint import LLMConfig
from llm_service.engines.admission import (
    check_queue,
    check_tokens,
    engine_dead,
    output_room,
)
from llm_service.engines.base import (
    EngineLoad,
    EngineStartError,
    Prompt,
    Request,
    RowsNeededError,
    StepTotals,
    TokenOutput,
    dtype_name,
)
from llm_service.engines.guides import GuideCompiler
from llm_service.engines.output_queue import OutputQueue
from llm_service.engines.tensorrt_llm.engine_folder import EngineFolder
from llm_service.engines.tensorrt_llm.logits import (
    Constraint,
    LogitsProcessor,
    constraining_option,
)
from llm_service.engines.tensorrt_llm.probe import CLIENT_ID as PROBE_CLIENT_ID
from llm_service.engines.tensorrt_llm.probe import Probe
from llm_service.engines.tensorrt_llm.requests import RequestFactory, Submission
from llm_service.engines.tensorrt_llm.responses import Delta, read_response
from llm_service.engines.tensorrt_llm.sampling import check_supported
from llm_service.engines.tensorrt_llm.turns import Turns
from llm_service.sampling import OutputGuide, SamplingParams
from protos.errors import ContextLengthError, NonFiniteError, ServiceError

logger = structlog.get_logger()

# How long the response thread may sleep before it sees that it is to end.
POLL = timedelta(milliseconds=50)


class TensorRTLLMEngine:
    """An LLMEngine around an executor.

    Two threads and the event loop, without locks. The calls' thread makes requests and cancels
    them, in the order in which the loop asks for it, and owns the requests that the executor has.
    The response thread waits for the executor and hands what comes to the loop, which owns the
    queues of those that wait. Besides that the response thread publishes plain values: the
    executor's load, and whether the engine has ended. It sets the latter before it fails whatever
    waits, and the loop looks at it in the same step in which it posts a request, or lets it wait.
    """

    def __init__(
        self,
        config: LLMConfig,
        folder: EngineFolder,
        runtime: executor.Executor,
        requests: RequestFactory,
        guides: GuideCompiler,
        processor: LogitsProcessor | None,
        turns: Turns,
        max_waiting_count: int,
    ) -> None:
        """Runs a first request, and starts the threads.

        Raises:
            EngineStartError: the first request fails.
        """
        self._config = config
        self._folder = folder
        self._executor = runtime
        self._requests = requests
        self._guides = guides
        self._processor = processor
        self._max_waiting_count = max_waiting_count
        # The event loop's:
        self._turns = turns
        self._client_ids = count(1)
        self._streams: dict[int, _Stream] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        # The calls' thread's. A request is kept because the executor reads its table.
        self._submitted: dict[int, tuple[int, executor.Request]] = {}
        kv_cache = self._warm_up()
        self._tokens_per_block = kv_cache.tokens_per_block
        self._total_kv_token_count = kv_cache.max_num_blocks * self._tokens_per_block
        self.context_length = min(
            config.max_position_embeddings, folder.max_sequence_length, self._total_kv_token_count
        )
        # The response thread's, read by others:
        self._free_kv_token_count = self._total_kv_token_count
        self._active_count = 0
        self._steps = StepTotals()
        self._ended = False
        self._probe = Probe()
        self._stopping = threading.Event()
        self._calls = ThreadPoolExecutor(1, "tensorrt-llm-calls")
        self._thread = threading.Thread(
            target=self._run, name="tensorrt-llm-responses", daemon=True
        )
        self._thread.start()

    async def generate(self, request: Request) -> AsyncGenerator[TokenOutput, None]:
        max_tokens = self._admit(request)
        constraint = await self._constraint(request)
        self._loop = asyncio.get_running_loop()
        waiting_count, account = self.load().waiting_sequence_count, request.account
        check_queue(waiting_count, self._max_waiting_count, account, has_ended=self._ended)
        submission = Submission(next(self._client_ids), request, max_tokens, constraint)
        stream = _Stream(submission, OutputQueue(request.pacing))
        self._streams[submission.client_id] = stream
        account.sequence_count += 1
        try:
            async with (
                self._turns.turn(request),
                aclosing(self._submitted_outputs(stream)) as outputs,
            ):
                async for output in outputs:
                    yield output
        finally:
            account.sequence_count -= 1
            del self._streams[submission.client_id]
            stream.outputs.close()

    async def _submitted_outputs(self, stream: _Stream) -> AsyncGenerator[TokenOutput, None]:
        """Yields what the executor makes of a request whose turn it is."""
        if self._ended:
            raise engine_dead()
        submitted = self._calls.submit(self._submit, stream.submission)
        try:
            await asyncio.wrap_future(submitted)
            async for output in stream.outputs:
                yield output
        finally:
            if not self._ended:
                client_id = stream.submission.client_id
                self._calls.submit(self._release, client_id, is_over=stream.is_over)

    async def check_guide(self, guide: OutputGuide) -> None:
        params = SamplingParams(guide=guide)
        check_supported(params, processes_logits=self._processor is not None)
        await self._guides.compiled(guide)

    def load(self) -> EngineLoad:
        """Returns the load; a request that the executor has not counted yet counts as waiting."""
        count = len(self._streams)  # once: the loop changes it meanwhile
        running = min(self._active_count, count)
        return EngineLoad(
            running_sequence_count=running,
            waiting_sequence_count=count - running,
            # The executor tells nothing while it has nothing to do.
            free_kv_token_count=self._free_kv_token_count if count else self._total_kv_token_count,
            total_kv_token_count=self._total_kv_token_count,
            steps=self._steps,
            startable_sequence_count=self._turns.free_count,
        )

    def is_healthy(self) -> bool:
        return not self._ended

    async def close(self) -> None:
        self._guides.close()
        self._stopping.set()
        await asyncio.to_thread(self._thread.join)
        # Behind all calls that the loop has made; it makes no more.
        await asyncio.wrap_future(self._calls.submit(self._shut_down))

    def _admit(self, request: Request) -> int:
        """Refuses what the executor could not run, and returns the request's max_tokens."""
        prompt, params = request.prompt, request.params
        check_tokens(request, self._config)
        check_supported(params, processes_logits=self._processor is not None)
        length, row_count = len(prompt.token_ids), len(prompt.prompt_table)
        if length > (limit := self._folder.max_prompt_length):
            raise ContextLengthError.of_prompt(
                f"it has {length} tokens, and the engine reads {limit} at most",
                self.context_length,
                field=prompt.field,
            )
        if row_count > (limit := self._folder.max_request_rows):
            raise ContextLengthError.of_prompt(
                f"its images have {row_count} rows, and the engine takes {limit} at most",
                self.context_length,
                field="images",
            )
        max_tokens = output_room(prompt, params.max_tokens, self.context_length)
        if not all(image.is_held for image in prompt.images):
            raise RowsNeededError("the tensorrt_llm engine needs the rows of every image")
        return max_tokens

    def _send_probe(self) -> None:
        """Enqueues a probe; one that cannot even be made has failed for good."""
        try:
            self._submit(self._probing())
        except ServiceError as error:
            logger.error("probe_failed", error=error.message)
            self._stopping.set()

    async def _constraint(self, request: Request) -> Constraint | None:
        params = request.params
        if constraining_option(params) is None:
            return None
        matcher = None
        if params.guide is not None:
            matcher = await self._guides.matcher(
                params.guide, params.stop_token_ids, request.account
            )
        return Constraint(params, len(request.prompt.token_ids), matcher)

    def _submit(self, submission: Submission) -> None:
        request = self._requests.request(submission)
        if self._processor is not None and submission.constraint is not None:
            self._processor.add(submission.client_id, submission.constraint)
        try:
            request_id = self._executor.enqueue_request(request)
        except RuntimeError as error:
            logger.error("enqueue_failed", error=str(error), exc_info=error)
            self._stopping.set()
            raise engine_dead() from error
        self._submitted[submission.client_id] = (request_id, request)

    def _release(self, client_id: int, *, is_over: bool) -> None:
        """Forgets a request; cancels it if its caller has gone before its end."""
        if self._processor is not None:
            self._processor.remove(client_id)
        submitted = self._submitted.pop(client_id, None)
        if submitted is not None and not is_over:
            self._cancel(submitted[0])

    def _cancel(self, request_id: int) -> None:
        with contextlib.suppress(RuntimeError):  # a dead executor has nothing left to cancel
            self._executor.cancel_request(request_id)

    def _shut_down(self) -> None:
        # The executor would first generate to the end what it still has.
        for request_id, _ in self._submitted.values():
            self._cancel(request_id)
        self._submitted.clear()
        try:
            self._executor.shutdown()
        except RuntimeError as error:  # it was dead already
            logger.warning("shutdown_failed", error=str(error))

    def _warm_up(self) -> executor.KvCacheStats:
        """Has a probe run, and returns the cache's size.

        Raises:
            EngineStartError: the executor cannot do it.
        """
        try:
            request_id = self._executor.enqueue_request(self._requests.request(self._probing()))
            delta = None
            while delta is None or not delta.is_final:
                for response in self._executor.await_responses(request_id, timeout=POLL):
                    delta = read_response(response, tokens_per_block=0)
                    if delta.error is not None:
                        raise delta.error
                    self._check_finite(delta.output)
        except (ServiceError, RuntimeError) as error:
            raise EngineStartError(f"the engine failed its first request: {error}") from error
        for stats in reversed(self._executor.get_latest_iteration_stats()):
            if stats.kv_cache_stats is not None:
                return stats.kv_cache_stats
        raise EngineStartError("the engine has no KV cache: build it with --kv_cache_type paged")

    def _probing(self) -> Submission:
        """Returns what a probe asks for: two tokens after some tokens and a virtual token."""
        table = torch.zeros(1, self._config.hidden_size)
        size = self._folder.vocabulary_size
        prompt = Prompt([0, size // 3, size // 3 * 2, size], table)
        params = SamplingParams(logprob_count=0)
        return Submission(PROBE_CLIENT_ID, Request(prompt, params), max_tokens=2)

    def _check_finite(self, output: TokenOutput) -> None:
        """Ends what the executor goes on with: its logits show in log probabilities alone.

        Raises:
            NonFiniteError: one of them is NaN.
        """
        if any(math.isnan(logprob.logprob) for logprob in output.logprobs):
            dtype = dtype_name(self._folder.dtype)
            raise NonFiniteError(
                f"the language model's numbers are not finite in {dtype}: build its engine with"
                " --dtype bfloat16"
            )

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                self._hand_over(self._executor.await_responses(timeout=POLL))
                self._publish_load()
        except Exception as error:
            # Whatever it is: in the log it has its traceback, and `_end` tells the callers.
            logger.error("engine_died", error=str(error), exc_info=error)
        finally:
            self._end()

    def _hand_over(self, responses: list[executor.Response]) -> None:
        if responses:
            deltas = [read_response(response, self._tokens_per_block) for response in responses]
            self._tell(deltas)
            if self._probe.is_due(deltas):
                self._calls.submit(self._send_probe)

    def _publish_load(self) -> None:
        for stats in self._executor.get_latest_iteration_stats():
            self._active_count = stats.num_active_requests
            if stats.kv_cache_stats is not None:
                free = stats.kv_cache_stats.free_num_blocks
                self._free_kv_token_count = free * self._tokens_per_block
            if (batch := stats.inflight_batching_stats) is not None:
                token_count = batch.num_ctx_tokens + batch.num_gen_requests
                self._steps = self._steps.after(stats.iter_latency_ms / 1000, token_count)

    def _end(self) -> None:
        """Fails every request that the loop has posted before it could see the end."""
        self._ended = True
        self._tell(None)

    def _tell(self, deltas: list[Delta] | None) -> None:
        """Hands deltas to the loop in one call; None is the end of all."""
        # Without a loop, or with a closed one, there are no callers.
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._deliver, deltas)

    def _deliver(self, deltas: list[Delta] | None) -> None:
        if deltas is None:
            deltas = [
                Delta(client_id, TokenOutput([], None), engine_dead())
                for client_id in self._streams
            ]
        for delta in deltas:
            if (stream := self._streams.get(delta.client_id)) is not None:
                stream.is_over = delta.is_final
                self._put(delta, stream)

    def _put(self, delta: Delta, stream: _Stream) -> None:
        """Hands on what a delta has come to; one that adds nothing is passed over."""
        try:
            output = self._output(delta, stream.submission)
        except ServiceError as error:
            stream.outputs.put(error)
            return
        if output.token_ids or delta.is_final:
            stream.outputs.put(output)

    def _output(self, delta: Delta, submission: Submission) -> TokenOutput:
        """Returns what a delta adds; raises the error that ends its request."""
        constraint = submission.constraint
        if delta.is_final and constraint is not None and constraint.failure is not None:
            raise constraint.failure
        if delta.error is not None:
            raise delta.error
        if delta.started_at is not None:
            submission.request.account.start(delta.started_at)
        self._check_finite(delta.output)
        return _counted(delta.output, len(submission.request.prompt.token_ids))


@dataclass
class _Stream:
    """What the executor makes of a request.

    Attributes:
        submission: the request.
        outputs: for its caller.
        is_over: whether the executor has done with it.
    """

    submission: Submission
    outputs: OutputQueue
    is_over: bool = False


def _counted(output: TokenOutput, prompt_length: int) -> TokenOutput:
    """Returns it with no more cached tokens than can be: a block that was reused in part counts."""
    count = min(output.cached_token_count, prompt_length - 1)
    return replace(output, cached_token_count=count)
