"""Server-sent events of a streamed answer: chat events in, bytes of the stream out."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from gateway.clients import ChatEvent, Finished, TextDelta, TokenLogprob, Usage
from gateway.errors import error_body
from gateway.schema import (
    ChoiceLogprobs,
    CompletionUsage,
    ContentLogprob,
    PromptTokensDetails,
    TopLogprob,
)
from protos.errors import ServiceError

HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache",
    # Asks nginx not to collect the stream.
    "X-Accel-Buffering": "no",
}
LEAST_LOGPROB = -9999.0
DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True)
class Transcript:
    """Writes one answer as chat.completion.chunk events.

    Attributes:
        id: the answer's id, the same in every chunk.
        created: Unix time in seconds.
        model: name of the model.
        include_usage: whether a last chunk holds the usage, and all others a null.
        choice_count: how many choices the answer has.
    """

    id: str
    created: int
    model: str
    include_usage: bool
    choice_count: int

    def opening(self) -> bytes:
        """Returns the first chunk of each choice: the role."""
        delta = {"role": "assistant", "content": "", "refusal": None}
        return b"".join(self._choice(index, delta) for index in range(self.choice_count))

    def event(self, event: ChatEvent) -> bytes:
        """Returns the chunk of an event; nothing for an empty delta or a usage nobody asked for."""
        if isinstance(event, TextDelta):
            return self._delta(event) if event.text or event.logprobs else b""
        if isinstance(event, Finished):
            return self._choice(event.index, {}, finish_reason=event.reason)
        usage = completion_usage(event).model_dump()
        return self._chunk([], usage) if self.include_usage else b""

    def _delta(self, delta: TextDelta) -> bytes:
        logprobs = choice_logprobs(delta.logprobs).model_dump() if delta.logprobs else None
        return self._choice(delta.index, {"content": delta.text}, logprobs)

    def _choice(
        self,
        index: int,
        delta: dict[str, Any],
        logprobs: dict[str, Any] | None = None,
        finish_reason: str | None = None,
    ) -> bytes:
        choice = {
            "index": index,
            "delta": delta,
            "logprobs": logprobs,
            "finish_reason": finish_reason,
        }
        return self._chunk([choice], None)

    def _chunk(self, choices: list[dict[str, Any]], usage: dict[str, Any] | None) -> bytes:
        chunk: dict[str, Any] = {
            "id": self.id,
            "object": "chat.completion.chunk",
            "created": self.created,
            "model": self.model,
            "choices": choices,
        }
        if self.include_usage:
            chunk["usage"] = usage
        return _event(json.dumps(chunk, separators=(",", ":")))


def completion_usage(usage: Usage) -> CompletionUsage:
    """Returns OpenAI's form of a usage."""
    return CompletionUsage(
        prompt_tokens=usage.prompt_token_count,
        completion_tokens=usage.output_token_count,
        total_tokens=usage.prompt_token_count + usage.output_token_count,
        prompt_tokens_details=PromptTokensDetails(
            cached_tokens=usage.cached_token_count, image_tokens=usage.image_token_count
        ),
    )


def choice_logprobs(logprobs: Iterable[TokenLogprob]) -> ChoiceLogprobs:
    """Returns OpenAI's form of log probabilities."""
    return ChoiceLogprobs(
        content=[
            ContentLogprob(
                **_token(logprob), top_logprobs=[TopLogprob(**_token(top)) for top in logprob.top]
            )
            for logprob in logprobs
        ]
    )


def _token(logprob: TokenLogprob) -> dict[str, Any]:
    # A token may hold a part of a character: OpenAI shows its bytes as \xf0, and the least
    # logarithm is its -9999.0, as JSON has no -inf.
    return {
        "token": logprob.token.decode(errors="backslashreplace"),
        "bytes": list(logprob.token),
        "logprob": max(logprob.logprob, LEAST_LOGPROB),
    }


def error_event(error: ServiceError) -> bytes:
    """Returns the event that ends a stream which failed; no [DONE] follows it."""
    return _event(error_body(error).model_dump_json())


def _event(data: str) -> bytes:
    return f"data: {data}\n\n".encode()
