"""What an engine refuses at its door, so that no request can break its threads."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Collection, Iterator

from llm_service.checkpoint import LLMConfig
from llm_service.engines.base import Account, Prompt, Request
from llm_service.engines.output_queue import OutputQueue
from protos.errors import (
    ContextLengthError,
    DeadlineError,
    EngineDeadError,
    InvalidArgumentError,
    InvalidTensorError,
    OverloadedError,
)

RETRY_AFTER_SECONDS = 1.0


def check_tokens(request: Request, config: LLMConfig) -> None:
    """Refuses what the forward pass or the sampler could not index.

    Raises:
        InvalidTensorError: the prompt table is not [rows, hidden_size].
        InvalidArgumentError: there is no token, or one that does not exist.
    """
    prompt = request.prompt
    table_shape = list(prompt.prompt_table.shape)
    if len(table_shape) != 2 or table_shape[1] != config.hidden_size:
        raise InvalidTensorError(
            f"the prompt table must be [rows, {config.hidden_size}], but is {table_shape}"
        )
    id_count = config.vocabulary_size + table_shape[0]
    _check_ids(prompt.field, "a token id", prompt.token_ids, id_count)
    if not prompt.token_ids:
        raise InvalidArgumentError(
            "the prompt has 0 tokens; it must have at least 1", field=prompt.field
        )
    stop_token_ids = request.params.stop_token_ids
    _check_ids("stop.token_ids", "a stop token's id", stop_token_ids, config.vocabulary_size)


def _check_ids(field: str, name: str, token_ids: Collection[int], limit: int) -> None:
    for token_id in (min(token_ids, default=0), max(token_ids, default=0)):
        if not 0 <= token_id < limit:
            raise InvalidArgumentError(
                f"{name} is {token_id}; it must be 0 to {limit - 1}", field=field
            )


def output_room(prompt: Prompt, max_tokens: int | None, context: int) -> int:
    """Returns how many tokens may be generated: what the context leaves, or less if asked for.

    Raises:
        ContextLengthError: the prompt leaves no room for a single one.
    """
    length = len(prompt.token_ids)
    room = context - length
    if room < 1:
        raise ContextLengthError.of_prompt(
            f"it has {length} tokens, which leaves no room for an answer",
            context,
            field=prompt.field,
        )
    return min(max_tokens or room, room)


def check_queue(
    waiting_count: int, max_waiting_count: int, account: Account, *, has_ended: bool
) -> None:
    """Refuses a sequence that nothing would run, or one more than may wait.

    The last quarter of the queue is for the first sequence of each request, so that requests for
    many choices leave room for others.

    Raises:
        EngineDeadError: the engine has ended.
        OverloadedError: as many wait already as may.
    """
    if has_ended:
        raise engine_dead()
    limit, kind = max_waiting_count, "may"
    if account.sequence_count:
        limit, kind = 3 * max_waiting_count // 4, "may where a request has several choices"
    if waiting_count >= limit:
        raise OverloadedError(
            f"{waiting_count} sequences wait already, and at most {limit} {kind}",
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


@contextlib.contextmanager
def alarm(outputs: OutputQueue, deadline: float | None) -> Iterator[None]:
    """Puts the end of a request's time into its queue when it comes, unless it is left before.

    Raises:
        DeadlineError: it is over already.
    """
    if (seconds := seconds_left(deadline)) is None:
        yield
        return
    handle = asyncio.get_running_loop().call_later(seconds, outputs.put, time_over())
    try:
        yield
    finally:
        handle.cancel()


def time_over() -> DeadlineError:
    """Returns what the caller of a request gets that takes longer than it may."""
    return DeadlineError("the request's time was over before its output was complete")


def engine_dead() -> EngineDeadError:
    """Returns what every caller of an ended engine gets."""
    return EngineDeadError("the language model engine has stopped working")
