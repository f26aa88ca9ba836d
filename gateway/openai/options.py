"""What requests of chats and of completions have in common."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, TypeVar

from pydantic import BeforeValidator, Field, PrivateAttr, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from gateway.openai.forms import (
    Choices,
    NoneIfEmpty,
    OptionalResponseFormat,
    OptionalSchema,
    OptionalStructuredOutputs,
)
from gateway.openai.known_fields import Section
from gateway.openai.refusals import refusal, shown
from gateway.openai.request_model import (
    MAX_ENTRY_COUNT,
    Float,
    Int32,
    Limit,
    RequestModel,
    Seed,
    Whole,
)
from gateway.openai.screening import listed, screen

# Bound against abuse, as MAX_ENTRY_COUNT.
MAX_BIAS_COUNT = 4096
# Where a form may be given, besides the response format.
FORMS = ("structured_outputs", "guided_json", "guided_regex", "guided_choice", "guided_grammar")
StopStrings = Annotated[list[str], Field(fail_fast=True, max_length=MAX_ENTRY_COUNT)]


def _as_name(value: object) -> object:
    return "" if value is None else value


def _as_list(value: object) -> object:
    if isinstance(value, str):
        return [value]
    if isinstance(value, list | None):
        return value
    message = "the stop strings are {shown}; they must be a string or a list of strings"
    raise PydanticCustomError("stop", message, {"shown": shown(value)})


def _by_token_id(value: object) -> object:
    """Checks the keys of OpenAI's map of token ids, as strings, to biases."""
    if isinstance(value, dict):
        if len(value) > MAX_BIAS_COUNT:
            message = "the logit bias has {count} entries; it must have at most {limit}"
            context = {"count": len(value), "limit": MAX_BIAS_COUNT}
            raise PydanticCustomError("biases", message, context)
        for key in value:
            _check_token_id(key)
    return value


def _check_token_id(key: str) -> None:
    if not re.fullmatch(r"0|[1-9][0-9]{0,8}", key):
        message = "a token id is {shown}; it must be a whole number of at most 9 digits"
        context = {"field": key, "shown": shown(key)}
        raise PydanticCustomError("bias_key", message, context)


class StreamOptions(RequestModel):
    """What a stream holds besides the text."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class ModelRequest(RequestModel):
    """A request to a model.

    Attributes:
        model: a name of it; empty for the one that is served.
    """

    model: Annotated[str, BeforeValidator(_as_name, json_schema_input_type=str | None)] = ""

    _ignored: str | None = PrivateAttr(None)

    def model_post_init(self, context: Sequence[str] | None, /) -> None:
        """Takes the paths of unknown fields, which are found before."""
        self._ignored = listed(context) if context else None

    @property
    def ignored_fields(self) -> str | None:
        """The fields that were passed over though they ask for something, for header and log."""
        return self._ignored


class SamplingOptions(ModelRequest):
    """How the tokens of an answer are chosen, and where they end."""

    stream: bool | None = None
    temperature: Float | None = None
    top_p: Float | None = None
    seed: Seed | None = None
    presence_penalty: Float | None = None
    frequency_penalty: Float | None = None
    stop: Annotated[
        StopStrings | None,
        BeforeValidator(_as_list, json_schema_input_type=StopStrings | str | None),
    ] = None
    logit_bias: Annotated[dict[str, Float] | None, BeforeValidator(_by_token_id)] = None

    # Not OpenAI's; named as vLLM and LMDeploy name them.
    top_k: Int32 | None = None
    min_p: Float | None = None
    repetition_penalty: Float | None = None
    stop_token_ids: (
        Annotated[list[Int32], Field(fail_fast=True, max_length=MAX_ENTRY_COUNT)] | None
    ) = None
    min_tokens: Int32 | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    priority: Annotated[int, Field(gt=-(2**31), lt=2**31), Whole] | None = None
    cache_salt: str | None = None


class GenerationOptions(SamplingOptions):
    """How an answer is made, whatever it is an answer to."""

    stream_options: StreamOptions | None = None
    max_tokens: Limit | None = None
    n: Int32 | None = None
    response_format: OptionalResponseFormat = None

    # Not OpenAI's; named as vLLM names them.
    structured_outputs: OptionalStructuredOutputs = None
    guided_json: OptionalSchema = None
    guided_regex: Annotated[str | None, NoneIfEmpty] = None
    guided_choice: Annotated[Choices | None, NoneIfEmpty] = None
    guided_grammar: Annotated[str | None, NoneIfEmpty] = None

    @model_validator(mode="after")
    def _streams_if_it_has_options(self) -> GenerationOptions:
        options = self.stream_options
        if (
            not self.stream
            and options
            and (options.include_usage or options.continuous_usage_stats)
        ):
            message = "options of a stream are given, but no stream is asked for"
            raise PydanticCustomError("stream_options", message, {"field": "stream_options"})
        return self

    @model_validator(mode="after")
    def _has_one_form(self) -> GenerationOptions:
        is_text = self.response_format is None or self.response_format.type == "text"
        names = [] if is_text else ["response_format"]
        names += [name for name in FORMS if getattr(self, name) is not None]
        if len(names) > 1:
            message = "the answer's form is given in {count} ways; it must be given in one"
            context = {"count": len(names), "field": names[-1]}
            raise PydanticCustomError("two_formats", message, context)
        return self

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with the usage."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    @property
    def continuous_usage(self) -> bool:
        """Whether each chunk of a stream holds the usage so far."""
        return self.include_usage and bool(
            self.stream_options and self.stream_options.continuous_usage_stats
        )

    @property
    def choice_count(self) -> int:
        """How many answers to generate."""
        return 1 if self.n is None else self.n


Request = TypeVar("Request", bound=ModelRequest)


def validated(model: type[Request], document: object, section: Section, strict: bool) -> Request:
    """Returns the request that a body's JSON is.

    Args:
        model: of the request.
        document: the JSON.
        section: the fields that are known.
        strict: refuse unknown fields that ask for something.

    Raises:
        InvalidArgumentError: a field is missing or malformed, or strictly unknown.
        UnsupportedFieldError: a field asks for something that we do not serve.
    """
    ignored: list[str] = []
    if isinstance(document, dict):
        ignored = screen(document, strict=strict, section=section)
    try:
        return model.model_validate(document, context=ignored)
    except ValidationError as error:
        raise refusal(error.errors(include_url=False)[0]) from None
