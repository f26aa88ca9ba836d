"""One choice from engine to text: joins token outputs, detokenizer and stop strings."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from llm_service.detokenizer import Detokenizer, StopStrings
from llm_service.engines import FinishReason, LLMEngine, Prompt
from llm_service.sampling import SamplingParams


@dataclass(frozen=True)
class TextDelta:
    """New text and the tokens that made it; the text may lag behind its tokens, or be empty."""

    text: str
    token_ids: Sequence[int]


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


async def generate_text(
    engine: LLMEngine,
    prompt: Prompt,
    params: SamplingParams,
    detokenizer: Detokenizer,
    stop_strings: StopStrings,
) -> AsyncGenerator[TextDelta | TextEnd, None]:
    """Yields deltas while the engine generates, and one end.

    The token that ends a sequence is in the last delta's `token_ids` but not in its text. A stop
    string ends the engine's sequence at once: leaving the loop closes the engine's generator.

    Raises:
        ServiceError: whatever the engine raises.
    """
    output_token_count = 0
    async with aclosing(engine.generate(prompt, params)) as outputs:
        async for output in outputs:
            output_token_count += len(output.token_ids)
            text = detokenizer.push(_visible(output.token_ids, params, output.finish_reason))
            if output.finish_reason is not None:
                text += detokenizer.finish()
            text, stop_string = stop_strings.push(text)
            reason = "stop" if stop_string is not None else output.finish_reason
            if stop_string is None and reason is not None:
                text += stop_strings.finish()
            yield TextDelta(text, output.token_ids)
            if reason is not None:
                yield TextEnd(reason, stop_string, output_token_count, output.cached_token_count)
                return


def _visible(
    token_ids: Sequence[int], params: SamplingParams, reason: FinishReason | None
) -> Sequence[int]:
    """Returns the ids without the one that ended the sequence."""
    if reason == "stop" and token_ids and token_ids[-1] in params.stop_token_ids:
        return token_ids[:-1]
    return token_ids
