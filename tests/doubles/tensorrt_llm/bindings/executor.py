"""The executor of the double: the torch engine behind TensorRT-LLM's executor interface.

An engine folder is that of trtllm-build, but its rank0.engine holds the path of the checkpoint.
"""

from __future__ import annotations

import asyncio
import json
import os
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, wait
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import count
from pathlib import Path
from typing import Any, cast

import torch

from llm_service.checkpoint import LLMConfig
from llm_service.engines.base import Account, TokenOutput
from llm_service.engines.base import Request as EngineRequest
from llm_service.engines.torch.engine import TorchEngine
from llm_service.engines.torch.launch import start_engine
from llm_service.engines.torch.model_runner import ModelRunner
from llm_service.engines.torch.sequence import Sequence
from llm_service.engines.torch.step_inputs import StepInputs
from llm_service.settings import Settings, TorchOptions
from llm_service.tokenizer import Tokenizer
from protos.errors import ServiceError

from .overloads import Overloaded
from .requests import Limits, Refused, StepFailed
from .values import (
    BatchingType,
    CapacitySchedulerPolicy,
    CommunicationMode,
    CommunicationType,
    ContextChunkingPolicy,
    ExecutorConfig,
    ExtendedRuntimePerfKnobConfig,
    FinishReason,
    GuidedDecodingConfig,
    GuidedDecodingParams,
    InflightBatchingStats,
    IterationStats,
    KvCacheConfig,
    KvCacheMetrics,
    KvCacheStats,
    LogitsPostProcessorConfig,
    ModelType,
    OrchestratorConfig,
    OutputConfig,
    ParallelConfig,
    PeftCacheConfig,
    PromptTuningConfig,
    Request,
    RequestPerfMetrics,
    RequestType,
    Response,
    Result,
    SamplingConfig,
    SchedulerConfig,
    TimingMetrics,
    UInt64,
)

__all__ = [
    "BatchingType",
    "CapacitySchedulerPolicy",
    "CommunicationMode",
    "CommunicationType",
    "ContextChunkingPolicy",
    "Executor",
    "ExecutorConfig",
    "ExtendedRuntimePerfKnobConfig",
    "FinishReason",
    "GuidedDecodingConfig",
    "GuidedDecodingParams",
    "IterationStats",
    "KvCacheConfig",
    "KvCacheMetrics",
    "KvCacheStats",
    "LogitsPostProcessorConfig",
    "ModelType",
    "OrchestratorConfig",
    "OutputConfig",
    "ParallelConfig",
    "PeftCacheConfig",
    "PromptTuningConfig",
    "Request",
    "RequestPerfMetrics",
    "RequestType",
    "Response",
    "Result",
    "SamplingConfig",
    "SchedulerConfig",
    "TimingMetrics",
]

FAULT = "CUDA error: an illegal memory access was encountered"
TOKENS_PER_BLOCK = 8
VOCABULARY_PADDING = 3
ITERATION_MS = 2.0
DEFAULT_KV_TOKENS = 8192
# How many tokens one response carries, in turn; an empty one is sent between two tokens.
DELTA_SIZES = (1, 0, 2, 3)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass
class MpiWorld:
    """What a test says of the processes: this one's rank, how many, whether the leader is gone."""

    rank: int = 0
    size: int = 1
    leader_is_gone: threading.Event = field(default_factory=threading.Event)


mpi = MpiWorld()


class Executor:
    """See the real one; `Executor(model_path, model_type, executor_config)` alone is here.

    Attributes:
        cancelled: ids given to cancel_request, for tests.
        requests: those enqueued, for tests.
        gate: a test closes it to hold all outputs back.
        at_gate: released by each output that comes to the gate.
    """

    def __init__(
        self, model_path: os.PathLike[str], model_type: ModelType, executor_config: ExecutorConfig
    ) -> None:
        given = (model_path, model_type, executor_config)
        if not all(map(isinstance, given, (os.PathLike, ModelType, ExecutorConfig))):
            raise TypeError("Executor(): incompatible constructor arguments")
        folder = Path(model_path)
        document = json.loads((folder / "config.json").read_text())
        self._check_world(executor_config, document["pretrained_config"]["mapping"]["world_size"])
        self._is_leader = mpi.rank == 0
        self._is_down = False
        self._responses: dict[int, list[Response]] = {}
        self._changed = threading.Condition()
        self._ids = count(1)
        self._tasks: dict[int, Future[None]] = {}
        self._reasons: dict[int, FinishReason | str] = {}
        self._failing_step_count = 0
        # By the identity of the prompt that the torch engine has of it.
        self._active: dict[int, tuple[int, Request]] = {}
        self._stats: deque[IterationStats] = deque(maxlen=executor_config.iter_stats_max_iterations)
        self.cancelled: list[int] = []
        self.requests: list[Request] = []
        self.gate = threading.Event()
        self.gate.set()
        self.at_gate = threading.Semaphore(0)
        self.config = executor_config
        if self._is_leader:
            self._start(folder, document)

    def _check_world(self, config: ExecutorConfig, world_size: int) -> None:
        parallel = config.parallel_config or ParallelConfig()
        if parallel.communication_mode is CommunicationMode.ORCHESTRATOR:
            orchestrator = parallel.orchestrator_config
            if orchestrator is None or not orchestrator.worker_executable_path:
                raise RuntimeError("OrchestratorConfig must be set to use orchestrator mode")
        elif mpi.size != world_size:
            raise RuntimeError(f"MPI world size {mpi.size} is not tp*pp*cp {world_size}")

    def _start(self, folder: Path, document: dict[str, Any]) -> None:
        model, build = document["pretrained_config"], document["build_config"]
        checkpoint = Path((folder / "rank0.engine").read_text())
        kv_cache = self.config.kv_cache_config
        self.limits = Limits(
            vocabulary_size=model["vocab_size"],
            hidden_size=model["hidden_size"],
            dtype=DTYPES[model["dtype"]],
            max_batch_size=build["max_batch_size"],
            max_input_length=build["max_input_len"],
            max_table_rows=build["max_prompt_embedding_table_size"],
            reuses_blocks=kv_cache.enable_block_reuse,
            offloads_tables=self.config.mm_embedding_offloading,
        )
        config = LLMConfig.from_checkpoint(checkpoint)
        kv_tokens = kv_cache.max_tokens or DEFAULT_KV_TOKENS
        itemsize = self.limits.dtype.itemsize
        settings = Settings(
            checkpoint=checkpoint,
            torch=TorchOptions(
                device="cpu", dtype=model["dtype"], thread_count=1, block_size=TOKENS_PER_BLOCK
            ),
            kv_cache_byte_count=kv_tokens * config.kv_values_per_token() * itemsize,
            max_running_sequence_count=self.config.max_batch_size or build["max_batch_size"],
            max_waiting_sequence_count=10_000,
        )
        self._engine: TorchEngine = start_engine(settings, config, cast(Tokenizer, NoTokens()))
        self._processing(self._engine._runner)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def _processing(self, runner: ModelRunner) -> None:
        """Has the logits of each step go through the processor before tokens are sampled."""
        compute = runner.logits

        def logits(inputs: StepInputs) -> torch.Tensor:
            values = compute(inputs)
            self._process(values, inputs.sampled)
            return values

        runner.logits = logits  # type: ignore[method-assign] # the double's way into the engine

    def _process(self, logits: torch.Tensor, sequences: list[Sequence]) -> None:
        chosen = [
            (row, sequence, *self._active[id(sequence.prompt)])
            for row, sequence in zip(logits, sequences, strict=True)
            if self._active[id(sequence.prompt)][1].logits_post_processor_name
        ]
        config = self.config.logits_post_processor_config
        if not chosen:
            return
        if config is None or config.processor_batched is None:
            raise RuntimeError("Batched logits post processor is not defined")
        rows, sequences, request_ids, requests = map(list, zip(*chosen, strict=True))
        # Of a vocabulary that is padded, of one beam.
        padded = [torch.cat([row, row.new_zeros(VOCABULARY_PADDING)])[None, None] for row in rows]
        config.processor_batched(
            request_ids,
            padded,
            [[list(sequence.token_ids)] for sequence in sequences],
            0,
            [request.client_id for request in requests],
        )
        for row, values in zip(rows, padded, strict=True):
            row.copy_(values[0, 0, :-VOCABULARY_PADDING])

    def can_enqueue_requests(self) -> bool:
        return self._is_leader and not self._is_down

    def enqueue_request(self, request: Request) -> int:
        self._check_usable()
        if not isinstance(request, Request):
            raise TypeError("enqueue_request(): incompatible function arguments")
        request_id = next(self._ids)
        self.requests.append(request)
        begun = threading.Event()
        serving = self._serve(request_id, request, begun)
        self._tasks[request_id] = asyncio.run_coroutine_threadsafe(serving, self._loop)
        begun.wait()  # cancelled before that, it would answer nothing
        return request_id

    def enqueue_requests(self, requests: list[Request]) -> list[int]:
        return [self.enqueue_request(request) for request in requests]

    def _await_all(self, timeout: timedelta | None = None) -> list[Response]:
        with self._changed:
            self._wait_for(lambda: bool(self._responses), timeout)
            return [response for one in list(self._responses) for response in self._taken(one)]

    def _await_one(
        self,
        id: UInt64,  # noqa: A002
        timeout: timedelta | None = None,
    ) -> list[Response]:
        with self._changed:
            self._wait_for(lambda: id in self._responses, timeout)
            return self._taken(id)

    def _await_several(
        self, ids: list[UInt64], timeout: timedelta | None = None
    ) -> list[list[Response]]:
        return [self._await_one(one, timeout) for one in ids]

    await_responses = Overloaded(_await_all, _await_one, _await_several)

    def _wait_for(self, condition: Callable[[], bool], timeout: timedelta | None) -> None:
        self._check_usable()
        seconds = None if timeout is None else timeout.total_seconds()
        self._changed.wait_for(lambda: self._is_down or condition(), seconds)
        self._check_usable()

    def _taken(self, request_id: int) -> list[Response]:
        return self._responses.pop(request_id, [])

    def get_num_responses_ready(self, id: int | None = None) -> int:  # noqa: A002
        with self._changed:
            ready = self._responses if id is None else {id: self._responses.get(id, [])}
            return sum(map(len, ready.values()))

    def cancel_request(self, id: int) -> None:  # noqa: A002
        self._check_usable()
        self.cancelled.append(id)
        self._end_early(id, FinishReason.CANCELLED)

    def get_latest_iteration_stats(self) -> list[IterationStats]:
        stats = list(self._stats)
        self._stats.clear()
        return stats

    def get_latest_request_stats(self) -> list[Any]:
        """Nothing, as with the default request_stats_max_iterations of 0."""
        return []

    def get_latest_debug_tensors(self) -> list[Any]:
        """Nothing, as without a debug_config."""
        return []

    def get_kv_cache_event_manager(self) -> None:
        """None, as with the default event_buffer_max_size of 0."""

    def shutdown(self) -> None:
        """Rank 0 generates first what it still has; another rank waits for rank 0."""
        if not self._is_leader:
            mpi.leader_is_gone.wait()
        elif not self._is_down:
            wait(list(self._tasks.values()))
            asyncio.run_coroutine_threadsafe(self._engine.close(), self._loop).result()
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()
            self._is_down = True

    def __enter__(self) -> Executor:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.shutdown()

    def close_gate(self) -> None:
        """For tests: holds all outputs back, and counts those that come from now on."""
        self.at_gate = threading.Semaphore(0)
        self.gate.clear()

    def fail_steps(self, count: int) -> None:
        """For tests: the present step fails, and so do the first steps of requests to come."""
        self._failing_step_count = count - 1
        self._loop.call_soon_threadsafe(self._fail_step, FAULT)

    def _fail_step(self, reason: str) -> str:
        """Ends all active requests, as executorImpl.cpp, forwardAsync, does, and goes on."""
        message = f"Encountered an error in forwardAsync function: {reason}"
        for request_id in list(self._tasks):
            self._end_early(request_id, message)
        return message

    def _check_usable(self) -> None:
        if self._is_down:
            raise RuntimeError("Shutdown called")
        if not self._is_leader:
            raise RuntimeError("only the leader process may call this")

    def _end_early(self, request_id: int, reason: FinishReason | str) -> None:
        """Ends a request with a reason, or with an error's message."""
        task = self._tasks.get(request_id)
        if task is not None and not task.done():
            self._reasons.setdefault(request_id, reason)
            task.cancel()

    async def _serve(self, request_id: int, request: Request, begun: threading.Event) -> None:
        begun.set()
        answer = Answer(request_id, request, account := Account())
        if request.allotted_time_ms is not None:
            seconds = request.allotted_time_ms.total_seconds()
            self._loop.call_later(seconds, self._end_early, request_id, FinishReason.TIMED_OUT)
        try:
            self.limits.check_length(request)
            if self._failing_step_count:
                self._failing_step_count -= 1
                raise StepFailed(FAULT)
            prompt = self.limits.prompt(request, request_id)
            params = self.limits.params(request)
            self._active[id(prompt)] = (request_id, request)
            priority = round(1000 * request.priority)
            wanted = EngineRequest(prompt, params, priority, account=account)
            async with aclosing(self._engine.generate(wanted)) as outputs:
                async for output in outputs:
                    self.at_gate.release()
                    await asyncio.to_thread(self.gate.wait)
                    self._note_stats(len(output.token_ids))
                    self._respond(request_id, answer.after(output))
        except asyncio.CancelledError:
            reason = self._reasons[request_id]
            if isinstance(reason, FinishReason):
                self._respond(request_id, [answer.cut_short(reason)])
            else:
                self._respond(request_id, [Response(request_id, reason, request.client_id)])
            raise
        except StepFailed as error:
            message = self._fail_step(str(error))
            self._respond(request_id, [Response(request_id, message, request.client_id)])
        except (Refused, ServiceError) as error:
            self._respond(request_id, [Response(request_id, str(error), request.client_id)])
        finally:
            self._note_stats(0)

    def _respond(self, request_id: int, responses: list[Response]) -> None:
        if responses:
            with self._changed:
                self._responses.setdefault(request_id, []).extend(responses)
                self._changed.notify_all()

    def _note_stats(self, generated_count: int) -> None:
        load = self._engine.load()
        blocks = load.total_kv_token_count // TOKENS_PER_BLOCK
        free = load.free_kv_token_count // TOKENS_PER_BLOCK
        kv_cache = KvCacheStats(blocks, free, blocks - free, TOKENS_PER_BLOCK)
        self._stats.append(
            IterationStats(
                num_active_requests=load.running_sequence_count,
                num_queued_requests=load.waiting_sequence_count,
                kv_cache_stats=kv_cache,
                iter_latency_ms=ITERATION_MS,
                # Of the iteration: the engine behind this double may be further by now.
                inflight_batching_stats=InflightBatchingStats(num_gen_requests=generated_count),
            )
        )


class Answer:
    """One request's responses so far: deltas without the prompt, and their sizes."""

    def __init__(self, request_id: int, request: Request, account: Account) -> None:
        if not request.streaming or request.return_all_generated_tokens:
            raise NotImplementedError("the double streams deltas")
        self._request_id = request_id
        self._request = request
        self._account = account
        self._held: list[int] = []
        self._log_probs: list[float] = []
        self._cached_token_count = 0
        self._count = 0

    def after(self, output: TokenOutput) -> list[Response]:
        """Returns what a new token makes the executor say: nothing, or up to two responses."""
        self._held += output.token_ids
        self._log_probs += [logprob.logprob for logprob in output.logprobs]
        self._cached_token_count = output.cached_token_count
        if output.finish_reason is not None:
            return self._end(output)
        size = DELTA_SIZES[self._count % len(DELTA_SIZES)]
        if len(self._held) < size:
            return []
        self._count += 1
        return [self._delta(0 if size == 0 else len(self._held), FinishReason.NOT_FINISHED)]

    def cut_short(self, reason: FinishReason) -> Response:
        """Returns the final response of a request that was ended from outside: it is empty."""
        self._held.clear()
        return self._delta(0, reason)

    def _end(self, output: TokenOutput) -> list[Response]:
        reason = FinishReason.LENGTH
        if output.finish_reason == "stop":
            is_end = self._held[-1] == self._request.end_id
            reason = FinishReason.END_ID if is_end else FinishReason.STOP_WORDS
            del self._held[len(self._held) - is_end :]  # an end_id is no output
        if self._request_id % 2:
            return [self._delta(len(self._held), reason)]
        tokens = self._delta(len(self._held), FinishReason.NOT_FINISHED)
        return [tokens, self._delta(0, reason)]

    def _delta(self, token_count: int, reason: FinishReason) -> Response:
        token_ids, self._held = self._held[:token_count], self._held[token_count:]
        is_final = reason is not FinishReason.NOT_FINISHED
        wants_log_probs = self._request.output_config.return_log_probs
        sent = self._log_probs[: len(self._log_probs) - len(self._held)]
        metrics = None
        if self._request.output_config.return_perf_metrics:
            reused = self._cached_token_count // TOKENS_PER_BLOCK
            started = timedelta(seconds=self._account.started_at or 0)
            metrics = RequestPerfMetrics(
                KvCacheMetrics(num_reused_blocks=reused),
                TimingMetrics(first_scheduled_time=started),
            )
        result = Result(
            is_final=is_final,
            output_token_ids=[token_ids],
            log_probs=[sent] if wants_log_probs else None,
            finish_reasons=[reason],
            is_sequence_final=is_final,
            request_perf_metrics=metrics,
        )
        return Response(self._request_id, result, self._request.client_id)


class NoTokens:
    """The tokenizer of an engine that is given no guides: they act on the logits from outside."""

    def special_id(self, content: str) -> int:
        return 0

    def is_special(self, token_id: int) -> bool:
        return True

    def encode_plain(self, text: str) -> list[int]:
        return []
