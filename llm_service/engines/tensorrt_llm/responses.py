"""What the executor answers, as plain values that may cross threads."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

import structlog
from tensorrt_llm.bindings import executor

from llm_service.engines.admission import time_over
from llm_service.engines.base import FinishReason, TokenLogprob, TokenOutput
from protos.errors import EngineDeadError, ServiceError

logger = structlog.get_logger()

# executorImpl.cpp, forwardAsync and forwardSync.
STEP_FAILURE = "Encountered an error in forward"
FINISH_REASONS: dict[executor.FinishReason, FinishReason] = {
    executor.FinishReason.END_ID: "stop",
    executor.FinishReason.STOP_WORDS: "stop",
    executor.FinishReason.LENGTH: "length",
}


@dataclass(frozen=True)
class Delta:
    """One response: what it adds to its request.

    Attributes:
        client_id: the request's.
        output: the new tokens, perhaps none or several.
        error: why the request has ended without a result.
        is_step_failure: whether all that was active at the time has ended so.
        started_at: when the executor began with its request; None where it does not tell.
    """

    client_id: int
    output: TokenOutput
    error: ServiceError | None = None
    is_step_failure: bool = False
    started_at: float | None = None

    @property
    def is_final(self) -> bool:
        """Whether nothing follows."""
        return self.error is not None or self.output.finish_reason is not None


def read_response(response: executor.Response, tokens_per_block: int) -> Delta:
    """Returns a streaming response's delta; its request has one beam."""
    if response.has_error():
        return _fault(response)
    result = response.result
    (token_ids,) = result.output_token_ids
    (reason,) = result.finish_reasons
    output = TokenOutput(
        token_ids=token_ids,
        finish_reason=FINISH_REASONS.get(reason) if result.is_final else None,
        cached_token_count=_cached_token_count(result, tokens_per_block),
        logprobs=_logprobs(result, token_ids),
    )
    if result.is_final and output.finish_reason is None:
        return Delta(response.client_id, output, _failure(reason))
    return Delta(response.client_id, output, started_at=_started_at(result))


def _logprobs(result: executor.Result, token_ids: list[int]) -> tuple[TokenLogprob, ...]:
    """Pairs the new tokens with their log probabilities, the last of those of all tokens so far."""
    if result.log_probs is None:
        return ()
    (log_probs,) = result.log_probs
    new = log_probs[len(log_probs) - len(token_ids) :]
    return tuple(map(TokenLogprob, token_ids, new))


def _cached_token_count(result: executor.Result, tokens_per_block: int) -> int:
    metrics = result.request_perf_metrics
    return 0 if metrics is None else metrics.kv_cache_metrics.num_reused_blocks * tokens_per_block


def _started_at(result: executor.Result) -> float | None:
    """Returns the time of the request's first step: their steady clock is `time.monotonic`'s."""
    metrics = result.request_perf_metrics
    if metrics is None:
        return None
    time: timedelta = metrics.timing_metrics.first_scheduled_time
    return time.total_seconds() or None


def _fault(response: executor.Response) -> Delta:
    message = response.error_msg
    # A backtrace may follow the first line, for the log alone.
    logger.error("request_failed", error=message)
    line = message.partition("\n")[0]
    error = ServiceError(f"TensorRT-LLM has failed the request: {line}")
    is_step_failure = message.startswith(STEP_FAILURE)
    return Delta(response.client_id, TokenOutput([], None), error, is_step_failure)


def _failure(reason: executor.FinishReason) -> ServiceError:
    if reason == executor.FinishReason.TIMED_OUT:
        return time_over()
    return EngineDeadError(f"the executor has given the request up ({reason.name})")
