"""What an engine has made of one sequence, until its caller takes it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from itertools import chain

from llm_service.engines.base import TokenOutput
from llm_service.engines.pacing import Pacing
from protos.errors import ServiceError

# A caller that was long away finds many. Their message, with log probabilities, would be larger
# than gRPC's may be, and hold up the event loop that makes it.
MAX_JOINED_COUNT = 64


class OutputQueue:
    """Outputs of one sequence, of which the caller takes all that have come as one, or as a few.

    The first tokens, the last ones and an error are there for the caller at once; others at the
    pacing's next turn after it took some, or at once when that is over. The event loop's.
    """

    def __init__(self, pacing: Pacing) -> None:
        self._pacing = pacing
        self._outputs: deque[TokenOutput] = deque()
        self._error: ServiceError | None = None
        self._is_over = False
        self._has_begun = False
        self._due = 0.0  # of the loop's time
        self._waiter: asyncio.Future[None] | None = None
        self._has_turn = False

    def put(self, output: TokenOutput | ServiceError) -> None:
        """Adds an output, or the error that ends the sequence; nothing after its end."""
        if self._is_over:
            return
        if isinstance(output, ServiceError):
            self._error, self._is_over = output, True
        else:
            self._outputs.append(output)
            self._is_over = output.finish_reason is not None
        if self._waiter is not None:
            self._wake_when_due()

    async def take(self) -> TokenOutput:
        """Returns what has come since it was last called, at least one output.

        What is told of a prompt comes by itself; what is more than MAX_JOINED_COUNT outputs comes
        at the next calls, at once.

        Raises:
            ServiceError: the one that was put, once all before it has been taken.
        """
        if not self._is_due:
            await self._wait()
        if not self._outputs:
            assert self._error
            raise self._error
        if self._outputs[0].prompt_logprobs is not None:
            return self._outputs.popleft()
        count = min(len(self._outputs), MAX_JOINED_COUNT if self._pacing.joins else 1)
        outputs = [self._outputs.popleft() for _ in range(count)]
        self._begin()
        if not self._outputs:
            self._due = self._pacing.turn_after(_now())
        return _joined(outputs)

    def __aiter__(self) -> OutputQueue:
        """Returns what is taken, up to the sequence's end."""
        return self

    async def __anext__(self) -> TokenOutput:
        if self._is_over and self._error is None and not self._outputs:
            raise StopAsyncIteration
        return await self.take()

    def close(self) -> None:
        """Ends the stream: others share its part."""
        self._pacing.stream_count -= self._has_begun

    def _begin(self) -> None:
        self._pacing.stream_count += not self._has_begun
        self._has_begun = True

    @property
    def _is_due(self) -> bool:
        return self._is_over or bool(self._outputs and _now() >= self._due)

    async def _wait(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        if self._outputs:
            self._wake_when_due()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake_when_due(self) -> None:
        if self._is_due:
            self._wake()
        elif not self._has_turn:
            self._has_turn = True
            self._pacing.call_at(self._due, self._take_turn)

    def _take_turn(self) -> None:
        self._has_turn = False
        if self._outputs:
            self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


def _now() -> float:
    return asyncio.get_running_loop().time()


def _joined(outputs: Sequence[TokenOutput]) -> TokenOutput:
    """Returns consecutive outputs as one."""
    last = outputs[-1]
    if len(outputs) == 1:
        return last
    return TokenOutput(
        token_ids=[token_id for output in outputs for token_id in output.token_ids],
        finish_reason=last.finish_reason,
        cached_token_count=last.cached_token_count,
        logprobs=tuple(chain.from_iterable(output.logprobs for output in outputs)),
    )
