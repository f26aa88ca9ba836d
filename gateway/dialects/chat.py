"""POST /v1/chat/completions: OpenAI's chat."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from gateway.dialects.base import Dialect
from gateway.fields import CHAT
from gateway.generation import GenerationRequest, ImageReference
from gateway.openai.answers import AnswerHead, StreamedAnswer, WholeAnswer
from gateway.openai.calls import CallForm, OlderCall, ToolCalls
from gateway.openai.errors import error_body
from gateway.openai.requests import ChatCompletionRequest, parse_chat_request


@dataclass(frozen=True)
class ChatCall:
    """A request for a chat completion."""

    request: ChatCompletionRequest

    @property
    def generations(self) -> Sequence[GenerationRequest]:
        request = self.request
        return [
            GenerationRequest(
                model=request.model,
                fields=CHAT.values(request),
                name_field=partial(CHAT.param_of, request),
                images=[ImageReference(at.source, at.param_of) for at in request.images()],
                choice_count=request.choice_count,
            )
        ]

    @property
    def stream(self) -> bool:
        return bool(self.request.stream)

    @property
    def ignored_fields(self) -> str | None:
        return self.request.ignored_fields

    def whole(self, head: AnswerHead) -> WholeAnswer:
        return WholeAnswer(head, self.request.choice_count, self._calls)

    def streamed(self, head: AnswerHead) -> StreamedAnswer:
        return StreamedAnswer(
            head,
            self.request.choice_count,
            include_usage=self.request.include_usage,
            continuous_usage=self.request.continuous_usage,
            calls=self._calls,
        )

    @property
    def _calls(self) -> CallForm:
        return OlderCall() if self.request.functions else ToolCalls()


def parse(body: bytes, strict_fields: bool) -> ChatCall:
    """Returns the request that a body holds; raises as `parse_chat_request`."""
    return ChatCall(parse_chat_request(body, strict_fields))


CHAT_COMPLETIONS = Dialect(
    "/v1/chat/completions", parse, lambda error, request_id: error_body(error)
)
