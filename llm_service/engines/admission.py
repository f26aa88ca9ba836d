"""What an engine refuses at its door, so that no request can break its threads."""

from __future__ import annotations

import time
from collections.abc import Collection

from llm_service.checkpoint import LLMConfig
from llm_service.engines.base import Prompt
from llm_service.sampling import SamplingParams
from protos.errors import (
    ContextLengthError,
    DeadlineError,
    EngineDeadError,
    InvalidArgumentError,
    InvalidTensorError,
    OverloadedError,
)

RETRY_AFTER_SECONDS = 1.0


def check_tokens(prompt: Prompt, params: SamplingParams, config: LLMConfig) -> None:
    """Refuses what the forward pass or the sampler could not index.

    Raises:
        InvalidTensorError: the prompt table is not [rows, hidden_size].
        InvalidArgumentError: there is no token, or one that does not exist.
    """
    table_shape = list(prompt.prompt_table.shape)
    if len(table_shape) != 2 or table_shape[1] != config.hidden_size:
        raise InvalidTensorError(
            f"the prompt table must be [rows, {config.hidden_size}], but is {table_shape}"
        )
    _check_ids("token_ids", prompt.token_ids, config.vocabulary_size + table_shape[0])
    if not prompt.token_ids:
        raise InvalidArgumentError("token_ids must hold at least 1 token, but has 0")
    _check_ids("stop.token_ids", params.stop_token_ids, config.vocabulary_size)


def _check_ids(field: str, token_ids: Collection[int], limit: int) -> None:
    for token_id in (min(token_ids, default=0), max(token_ids, default=0)):
        if not 0 <= token_id < limit:
            raise InvalidArgumentError(
                f"{field} must be from 0 to {limit - 1}, but one is {token_id}", field=field
            )


def output_room(prompt_length: int, max_tokens: int | None, context: int) -> int:
    """Returns how many tokens may be generated: max_tokens, or else what the context leaves.

    Raises:
        ContextLengthError: the prompt leaves no room for that many, or for one.
    """
    wanted = max_tokens or 1
    if prompt_length + wanted > context:
        raise ContextLengthError(
            f"the prompt has {prompt_length} tokens and stop.max_token_count is {wanted}, together "
            f"{prompt_length + wanted}, but the context holds {context}",
            field="stop.max_token_count" if max_tokens else "messages",
        )
    return max_tokens or context - prompt_length


def check_queue(waiting: int, max_waiting: int, *, has_ended: bool) -> None:
    """Refuses a sequence that nothing would run, or one more than may wait.

    Raises:
        EngineDeadError: the engine has ended.
        OverloadedError: with what the setting allows.
    """
    if has_ended:
        raise engine_dead()
    if waiting >= max_waiting:
        raise OverloadedError(
            f"{waiting} sequences wait already; max_waiting_sequences is {max_waiting}",
            retry_after=RETRY_AFTER_SECONDS,
        )


def seconds_left(deadline: float | None) -> float | None:
    """Returns the time until a deadline of `time.monotonic`; None if there is none.

    Raises:
        DeadlineError: it has passed.
    """
    if deadline is None:
        return None
    if (seconds := deadline - time.monotonic()) <= 0:
        raise time_over()
    return seconds


def time_over() -> DeadlineError:
    """Returns what the caller of a request gets that takes longer than it may."""
    return DeadlineError("the request's time was over before its output was complete")


def engine_dead() -> EngineDeadError:
    """Returns what every caller of an ended engine gets."""
    return EngineDeadError("the language model engine has stopped working")
