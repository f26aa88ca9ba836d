"""OpenAI's older requests: a text is gone on with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import (
    BeforeValidator,
    PlainValidator,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import PydanticCustomError

from gateway.openai.completion_fields import COMPLETION
from gateway.openai.json_limits import MAX_TOKEN_VALUE_COUNT, read_json
from gateway.openai.options import GenerationOptions, validated
from gateway.openai.refusals import shown_kind
from gateway.openai.request_model import Int32, Limit
from gateway.openai.token_ids import MAX_INT32, token_ids
from protos.errors import InvalidArgumentError

MAX_PROMPT_COUNT = 128
DEFAULT_TOKEN_COUNT = 16
IDS: dict[str, Any] = {
    "type": "array",
    "items": {"type": "integer", "minimum": 0, "maximum": MAX_INT32},
    "minItems": 1,
}
PROMPTS: dict[str, Any] = {
    "anyOf": [
        {"type": "string"},
        IDS,
        {
            "type": "array",
            "items": {"anyOf": [{"type": "string"}, IDS]},
            "minItems": 1,
            "maxItems": MAX_PROMPT_COUNT,
        },
    ]
}


@dataclass(frozen=True)
class Prompt:
    """A text, or its tokens.

    Attributes:
        param: JSON path of it.
        text: the text; None where it is given as tokens.
        token_ids: the tokens; none where it is given as text.
    """

    param: str
    text: str | None = None
    token_ids: tuple[int, ...] = ()


def _as_prompts(value: object) -> list[Prompt]:
    if isinstance(value, list) and value and type(value[0]) is not int:
        if len(value) > MAX_PROMPT_COUNT:
            raise InvalidArgumentError(
                f"the request has {len(value)} prompts; the limit is {MAX_PROMPT_COUNT}",
                field="prompt",
            )
        return [_as_prompt(entry, f"prompt[{index}]") for index, entry in enumerate(value)]
    return [_as_prompt(value, "prompt")]


def _as_prompt(value: object, param: str) -> Prompt:
    if isinstance(value, str):
        return Prompt(param, text=value)
    if isinstance(value, list) and value:
        return Prompt(param, token_ids=tuple(token_ids(value, param)))
    kind = "an empty list" if value == [] else shown_kind(value)
    raise InvalidArgumentError(
        f"a prompt is {kind}; it must be a string or a list of token ids", field=param
    )


def _or_default(value: object) -> object:
    return DEFAULT_TOKEN_COUNT if value is None else value


class CompletionRequest(GenerationOptions):
    """The body of POST /v1/completions. An unset field takes the LLM service's default."""

    prompt: Annotated[list[Prompt], PlainValidator(_as_prompts), WithJsonSchema(PROMPTS)]
    max_tokens: Annotated[
        Limit | None, BeforeValidator(_or_default, json_schema_input_type=Limit | None)
    ] = DEFAULT_TOKEN_COUNT
    echo: bool | None = None
    logprobs: Int32 | None = None
    best_of: Int32 | None = None

    @model_validator(mode="after")
    def _consistent(self) -> CompletionRequest:
        if self.best_of not in (None, 1, self.choice_count):
            message = "of {count} answers the best are asked for; use 'n', and choose among them"
            raise PydanticCustomError(
                "best_of", message, {"field": "best_of", "count": self.best_of}
            )
        if self.max_tokens == 0 and not self.echo:
            message = "no token is asked for, and no echo; 'max_tokens' must be at least 1"
            raise PydanticCustomError("no_tokens", message, {"field": "max_tokens"})
        count = len(self.prompt) * self.choice_count
        if self.echo and self.logprobs is not None and count > MAX_PROMPT_COUNT:
            message = (
                "{count} choices would repeat the log probabilities of their prompts;"
                " the limit is {limit}"
            )
            context = {"field": "n", "count": count, "limit": MAX_PROMPT_COUNT}
            raise PydanticCustomError("choices", message, context)
        return self


def parse_completion_request(body: bytes, strict_fields: bool = False) -> CompletionRequest:
    """Returns the request that a body holds; raises as `parse_chat_request`."""
    document = read_json(body, MAX_TOKEN_VALUE_COUNT)
    return validated(CompletionRequest, document, COMPLETION, strict_fields)
