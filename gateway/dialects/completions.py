"""POST /v1/completions: OpenAI's older form, in which a text is gone on with."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from gateway.dialects.base import Dialect, openai_error
from gateway.fields import GENERATION, Option, Options
from gateway.generation import GenerationRequest
from gateway.openai.answers import AnswerHead
from gateway.openai.completion_answers import CompletionForm, StreamedCompletion, WholeCompletion
from gateway.openai.completion_fields import COMPLETION
from gateway.openai.completion_types import Completion, CompletionChunk
from gateway.openai.completions import CompletionRequest, Prompt, parse_completion_request
from gateway.openapi.operation import OF_BODIES, Operation

# The paths of GenerateStart's fields that hold a prompt.
PROMPT = re.compile(r"(?:text|token_ids(?:\.ids)?|prompt)(?P<rest>[.\[].*)?")
# GenerateStart without the prompt, of a CompletionRequest.
OPTIONS = Options(
    Option("stop.max_token_count", "max_tokens", {0: 1}.get),  # one is made, and left out
    Option("logprobs.top_count", "logprobs"),
    Option("logprobs.prompt", "echo", {}.get),  # see _prompt_fields
    *GENERATION,
)
EXAMPLES: dict[str, dict[str, Any]] = {
    "text": {"prompt": "Pandas live", "max_tokens": 8},
    "stream": {
        "prompt": ["Pandas live", "Pandas eat"],
        "stream": True,
        "stream_options": {"include_usage": True},
    },
    "loglikelihood": {"prompt": [1, 2, 3], "echo": True, "logprobs": 1, "max_tokens": 0},
}


@dataclass(frozen=True)
class CompletionCall:
    """A request for completions."""

    request: CompletionRequest

    @property
    def generations(self) -> Sequence[GenerationRequest]:
        request = self.request
        fields = OPTIONS.values(request)
        return [
            GenerationRequest(
                model=request.model,
                fields={**fields, **_prompt_fields(request, prompt)},
                name_field=partial(_param_of, request, prompt),
                choice_count=request.choice_count,
            )
            for prompt in request.prompt
        ]

    @property
    def stream(self) -> bool:
        return bool(self.request.stream)

    @property
    def ignored_fields(self) -> str | None:
        return self.request.ignored_fields

    def whole(self, head: AnswerHead) -> WholeCompletion:
        return WholeCompletion(head, self._form)

    def streamed(self, head: AnswerHead) -> StreamedCompletion:
        return StreamedCompletion(
            head,
            self._form,
            include_usage=self.request.include_usage,
            continuous_usage=self.request.continuous_usage,
        )

    @property
    def _form(self) -> CompletionForm:
        request = self.request
        return CompletionForm(
            choice_count=request.choice_count,
            echoes=[prompt.text if request.echo else "" for prompt in request.prompt],
            has_logprobs=request.logprobs is not None,
            is_echo_alone=request.max_tokens == 0,
        )


def _prompt_fields(request: CompletionRequest, prompt: Prompt) -> Mapping[str, Any]:
    is_text = prompt.text is not None
    fields: dict[str, Any] = (
        {"text": prompt.text} if is_text else {"token_ids.ids": prompt.token_ids}
    )
    if request.echo and (request.logprobs is not None or not is_text):
        fields["logprobs.prompt"] = True  # they bring the text of token ids, too
    return fields


def _param_of(request: CompletionRequest, prompt: Prompt, field: str) -> str:
    """Returns the JSON path of what a field of GenerateStart was made from."""
    if place := PROMPT.fullmatch(field):
        return prompt.param + (place["rest"] or "")
    return OPTIONS.param_of(request, field)


def parse(body: bytes, strict_fields: bool) -> CompletionCall:
    """Returns the request that a body holds; raises as `parse_completion_request`."""
    return CompletionCall(parse_completion_request(body, strict_fields))


COMPLETIONS = Dialect(
    "/v1/completions",
    parse,
    openai_error,
    Operation(
        "Goes on with a text",
        Completion,
        request=CompletionRequest,
        event=CompletionChunk,
        last_word="[DONE]",
        examples=EXAMPLES,
        errors=OF_BODIES,
        sections={CompletionRequest: COMPLETION},
        description="OpenAI's older form, without a chat's template and pictures.",
    ),
    answer_id_prefix="cmpl-",
)
