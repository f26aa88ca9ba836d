"""Choices from engine to text: joins token outputs, detokenizer and stop strings."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace

from llm_service.call_reader import CallReader
from llm_service.detokenizer import Detokenizer, StopStrings
from llm_service.engines.base import FinishReason, LLMEngine, Request, TokenLogprob, TokenOutput
from llm_service.sampling import MIN_SEED, SamplingParams
from llm_service.tools.base import ToolCallDelta

# With 20 alternatives each the event loop makes a message of them in a millisecond or two.
PROMPT_PART_TOKEN_COUNT = 32


@dataclass(frozen=True)
class TextDelta:
    """New text and new tokens; the text may lag behind its tokens, or be empty.

    Attributes:
        text: whole characters.
        token_ids: the new tokens, also those that the text leaves out.
        logprobs: one for each of them if the request asks for them, else empty.
        prompt_token_count: tokens of the prompt, where this is the first of all deltas.
        tool_calls: new pieces of calls, which are not in the text.
    """

    text: str
    token_ids: Sequence[int]
    logprobs: Sequence[TokenLogprob] = ()
    prompt_token_count: int | None = None
    tool_calls: Sequence[ToolCallDelta] = ()


@dataclass(frozen=True)
class TextEnd:
    """The end of a choice.

    Attributes:
        reason: why it ended.
        stop_string: the stop string that ended it, if one did.
        output_token_count: tokens generated, the ending one included.
        cached_token_count: prompt tokens whose KV cache was reused.
    """

    reason: FinishReason
    stop_string: str | None
    output_token_count: int
    cached_token_count: int


@dataclass(frozen=True)
class PromptLogprobs:
    """The next of the prompt's tokens; its first one has 0, and no alternatives."""

    tokens: Sequence[TokenLogprob]


TextEvent = PromptLogprobs | TextDelta | TextEnd


def choice_request(request: Request, index: int) -> Request:
    """Returns the request for one of several choices: each has its own seed, counted on.

    After the largest seed comes the smallest. The first choice tells of the prompt.
    """
    params = request.params
    if index > 0:
        params = replace(params, wants_prompt_logprobs=False)
    if params.seed is not None:
        seed = (params.seed + index - MIN_SEED) % 2**64 + MIN_SEED
        params = replace(params, seed=seed)
    return replace(request, params=params)


async def prompt_first(
    choices: Sequence[AsyncGenerator[TextEvent, None]],
) -> AsyncGenerator[tuple[int, TextEvent], None]:
    """Yields as `interleaved` does; the others begin once the first has told of the prompt."""
    async with aclosing(choices[0]) as first:
        async for event in first:
            yield 0, event
            if not isinstance(event, PromptLogprobs):
                break
        async with aclosing(interleaved(choices)) as events:
            async for index, event in events:
                yield index, event


async def interleaved(
    choices: Sequence[AsyncGenerator[TextEvent, None]],
) -> AsyncGenerator[tuple[int, TextEvent], None]:
    """Yields the events of all choices as they come, each with its choice's index.

    Closes all choices when it is closed, or when one of them fails.

    Raises:
        ServiceError: whatever the first choice to fail raises.
    """
    if len(choices) == 1:  # needs no task, whose hand-over would cost each token some 20 us
        async with aclosing(choices[0]) as events:
            async for event in events:
                yield 0, event
        return
    arrived: asyncio.Queue[tuple[int, TextEvent | None]] = asyncio.Queue()
    tasks = [
        asyncio.create_task(_pass_on(index, choice, arrived))
        for index, choice in enumerate(choices)
    ]
    try:
        open_count = len(tasks)
        while open_count:
            index, arrival = await arrived.get()
            if arrival is None:
                open_count -= 1
                await tasks[index]
            else:
                yield index, arrival
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _pass_on(
    index: int,
    choice: AsyncGenerator[TextEvent, None],
    arrived: asyncio.Queue[tuple[int, TextEvent | None]],
) -> None:
    """Puts a choice's events into the queue, and None when it is over, however it ended."""
    try:
        async with aclosing(choice) as events:
            async for event in events:
                arrived.put_nowait((index, event))
    finally:
        arrived.put_nowait((index, None))


async def generate_text(
    engine: LLMEngine,
    request: Request,
    detokenizer: Detokenizer,
    stop_strings: StopStrings,
    calls: CallReader | None = None,
) -> AsyncGenerator[TextEvent, None]:
    """Yields one choice: the prompt's tokens if asked for, deltas while it is made, and one end.

    The token that ends a sequence is in the last delta's `token_ids` but not in its text. A stop
    string ends the engine's sequence at once: leaving the loop closes the engine's generator. Calls
    of tools, where `calls` reads them, are no text.

    Raises:
        ServiceError: whatever the engine raises.
    """
    untold = request.prompt.token_ids[:1] if request.params.wants_prompt_logprobs else []
    text = ChoiceText(request.params, detokenizer, stop_strings, calls)
    async with aclosing(engine.generate(request)) as outputs:
        async for output in outputs:
            if untold:
                yield PromptLogprobs([TokenLogprob(untold.pop(), 0.0)])
            if output.prompt_logprobs is not None:
                for tokens in output.prompt_logprobs.parts(PROMPT_PART_TOKEN_COUNT):
                    yield PromptLogprobs(tokens)
                continue
            delta, end = text.push(output)
            yield delta
            if end is not None:
                yield end
                return


class ChoiceText:
    """The text of a choice, its calls and its end, from its tokens."""

    def __init__(
        self,
        params: SamplingParams,
        detokenizer: Detokenizer,
        stop_strings: StopStrings,
        calls: CallReader | None,
    ) -> None:
        self._params = params
        self._detokenizer = detokenizer
        self._stop_strings = stop_strings
        self._calls = calls
        self._output_token_count = 0

    def push(self, output: TokenOutput) -> tuple[TextDelta, TextEnd | None]:
        """Returns what an output adds, and the end if it is there.

        Tokens after the one that completes a stop string are left out, as if they had never been.
        """
        parts = [output] if self._stop_strings.is_empty else output.by_token()
        texts: list[str] = []
        pieces: list[ToolCallDelta] = []
        token_count, reason, stop_string = 0, output.finish_reason, None
        for part in parts:
            token_count += len(part.token_ids)
            text, new_pieces, stop_string = self._read(part)
            texts.append(text)
            pieces += new_pieces
            if stop_string is not None:
                reason = "stop"
                break
        delta = TextDelta(
            "".join(texts),
            output.token_ids[:token_count],
            output.logprobs[:token_count],
            tool_calls=joined_calls(pieces),
        )
        self._output_token_count += token_count
        if reason is None:
            return delta, None
        count = self._output_token_count
        return delta, TextEnd(reason, stop_string, count, output.cached_token_count)

    def _read(self, output: TokenOutput) -> tuple[str, Sequence[ToolCallDelta], str | None]:
        """Returns new text, new pieces of calls, and the stop string that ends it, if one does."""
        text = self._detokenizer.push(_visible(output, self._params))
        is_last, calls = output.finish_reason is not None, self._calls
        if is_last:
            text += self._detokenizer.finish()
        pieces: Sequence[ToolCallDelta] = ()
        if calls is not None:
            text, pieces = calls.push(text)
            text += calls.finish() if is_last else ""
        text, stop_string = self._stop_strings.push(text)
        if stop_string is not None:
            return text, (), stop_string
        if is_last or (calls is not None and calls.has_begun):
            text += self._stop_strings.finish()
        return text, pieces, None


def joined_calls(pieces: Sequence[ToolCallDelta]) -> Sequence[ToolCallDelta]:
    """Returns one piece of each call for its consecutive ones."""
    if len(pieces) < 2:
        return pieces
    joined: dict[int, ToolCallDelta] = {}
    for piece in pieces:
        if first := joined.get(piece.call_index):
            piece = replace(first, arguments=first.arguments + piece.arguments)
        joined[piece.call_index] = piece
    return [*joined.values()]


def _visible(output: TokenOutput, params: SamplingParams) -> Sequence[int]:
    """Returns the ids without the one that ended the sequence."""
    token_ids = output.token_ids
    if output.finish_reason == "stop" and token_ids and token_ids[-1] in params.stop_token_ids:
        return token_ids[:-1]
    return token_ids
