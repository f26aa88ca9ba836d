"""Server-sent events of a streamed answer: chat events in, bytes of the stream out."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from gateway.clients import ChatEvent, Finished, TextDelta, Usage
from gateway.errors import error_body
from gateway.schema import CompletionUsage, PromptTokensDetails
from protos.errors import ServiceError

HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache",
    # Asks nginx not to collect the stream.
    "X-Accel-Buffering": "no",
}
DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True)
class Transcript:
    """Writes one answer as chat.completion.chunk events.

    Attributes:
        id: the answer's id, the same in every chunk.
        created: Unix time in seconds.
        model: name of the model.
        include_usage: whether a last chunk holds the usage, and all others a null.
    """

    id: str
    created: int
    model: str
    include_usage: bool

    def opening(self) -> bytes:
        """Returns the first chunk: the role."""
        return self._delta({"role": "assistant", "content": "", "refusal": None})

    def event(self, event: ChatEvent) -> bytes:
        """Returns the chunk of an event; nothing for an empty text or a usage nobody asked for."""
        if isinstance(event, TextDelta):
            return self._delta({"content": event.text}) if event.text else b""
        if isinstance(event, Finished):
            return self._delta({}, event.reason)
        usage = completion_usage(event).model_dump()
        return self._chunk([], usage) if self.include_usage else b""

    def _delta(self, delta: dict[str, Any], finish_reason: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
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


def error_event(error: ServiceError) -> bytes:
    """Returns the event that ends a stream which failed; no [DONE] follows it."""
    return _event(error_body(error).model_dump_json())


def _event(data: str) -> bytes:
    return f"data: {data}\n\n".encode()
