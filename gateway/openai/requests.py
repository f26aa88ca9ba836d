"""OpenAI's chat requests: what they may hold, and how a malformed one is refused."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)
from pydantic_core import PydanticCustomError

from gateway.openai.json_limits import read_json
from gateway.openai.refusals import MAX_SHOWN_LENGTH, UNSUPPORTED, refusal
from gateway.openai.strictness import close

# Bounds against abuse, far above the contract's own limits: pydantic would collect an error for
# every entry, and a small body of half a million bad ones would take seconds and gigabytes.
MAX_MESSAGE_COUNT = 4096
MAX_PART_COUNT = 1024
MAX_STOP_COUNT = 1024
MAX_BIAS_COUNT = 4096
# Names of the JSON that pydantic's own methods have, and what they are called here.
ATTRIBUTES = {"schema": "definition", "json": "definition"}

Int32 = Annotated[int, Field(ge=-(2**31), lt=2**31)]
Int64 = Annotated[int, Field(ge=-(2**63), lt=2**63)]
Float = Annotated[float, Field(allow_inf_nan=False)]
StopStrings = Annotated[list[str], Field(fail_fast=True, max_length=MAX_STOP_COUNT)]


def _unsupported(*harmless: object) -> AfterValidator:
    """Marks a field of OpenAI's that we do not serve: null and values that ask for nothing pass."""

    def check(value: object) -> None:
        # By type too: in Python True equals 1, in JSON it is something else.
        if value is not None and not any(
            type(value) is type(other) and value == other for other in harmless
        ):
            raise PydanticCustomError(UNSUPPORTED, "this server does not support the field")

    return AfterValidator(check)


def _as_list(value: object) -> object:
    return [value] if isinstance(value, str) else value


def _as_parts(value: object) -> object:
    if isinstance(value, str):
        return [{"type": "text", "text": value}]
    if not isinstance(value, list):
        message = "a message's content must be a string or a list of parts"
        raise PydanticCustomError("content_type", message)
    return value


def _as_schema_text(value: object) -> object:
    if isinstance(value, dict):
        return json.dumps(value, ensure_ascii=False)
    raise PydanticCustomError("schema_type", "a JSON Schema must be an object")


def _as_optional_schema_text(value: object) -> object:
    return value if value is None or isinstance(value, str) else _as_schema_text(value)


def _by_token_id(value: object) -> object:
    """Checks the keys of OpenAI's map of token ids, as strings, to biases."""
    if isinstance(value, dict):
        if len(value) > MAX_BIAS_COUNT:
            message = "the logit bias has {count} entries; it must have at most {limit}"
            context = {"count": len(value), "limit": MAX_BIAS_COUNT}
            raise PydanticCustomError("biases", message, context)
        for key in value:
            if not re.fullmatch(r"0|[1-9][0-9]{0,8}", key):
                message = "a token id of the logit bias must be a whole number of at most 9 digits"
                raise PydanticCustomError("bias_key", message, {"field": key})
    return value


class RequestModel(BaseModel):
    """A JSON object of a request: unknown fields and values of another JSON type are refused."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _not_too_many(cls, value: object) -> object:
        # Pydantic would collect an error for each unknown field.
        if isinstance(value, dict) and len(value) > len(cls.model_fields):
            known = {field.alias or name for name, field in cls.model_fields.items()}
            name = next(name for name in value if name not in known)
            message = "this server does not know the field '{name}'"
            context = {"field": name, "name": name[:MAX_SHOWN_LENGTH]}
            raise PydanticCustomError("unknown_field", message, context)
        return value

    def at(self, path: str) -> Any:
        """Returns what stands at a JSON path of names, e.g. "stop"; None where nothing does."""
        value: Any = self
        for name in path.split("."):
            value = None if value is None else getattr(value, ATTRIBUTES.get(name, name))
        return value


class ImageURL(RequestModel):
    """Where an image is, and how finely it is looked at.

    Attributes:
        url: data:, file:// or http(s)://.
        detail: low is one tile, high as many as the vision service allows.
        max_dynamic_patch: tile cap without the thumbnail; goes before `detail`.
    """

    url: str
    detail: Literal["auto", "low", "high"] | None = None
    max_dynamic_patch: Annotated[int, Field(ge=1, lt=2**31)] | None = None


class ContentPart(RequestModel):
    """A piece of a message: its type, and the one field that the type names."""

    type: Literal["text", "image_url"]
    text: str | None = None
    image_url: ImageURL | None = None

    @model_validator(mode="after")
    def _has_its_field(self) -> ContentPart:
        if getattr(self, self.type) is None:
            message = (
                "a text part has no text" if self.type == "text" else "an image part has no image"
            )
            raise PydanticCustomError("no_field", message, {"field": self.type})
        other = "image_url" if self.type == "text" else "text"
        if getattr(self, other) is not None:
            message = "a part has a text and an image; it must have what its type says"
            raise PydanticCustomError("other_type", message, {"field": other})
        return self


class Message(RequestModel):
    """One message of the conversation; a string as content has become one text part."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[
        list[ContentPart],
        Field(fail_fast=True, max_length=MAX_PART_COUNT),
        BeforeValidator(_as_parts),
    ]

    # An assistant's message comes back with these as the client library read it.
    annotations: Annotated[Any, _unsupported([])] = None
    audio: Annotated[Any, _unsupported()] = None
    function_call: Annotated[Any, _unsupported()] = None
    name: Annotated[Any, _unsupported()] = None
    parsed: Any = None  # the client library's own reading of the content
    refusal: Annotated[Any, _unsupported()] = None
    tool_calls: Annotated[Any, _unsupported([])] = None

    @model_validator(mode="after")
    def _images_from_users(self) -> Message:
        count = sum(part.image_url is not None for part in self.content)
        if self.role != "user" and count:  # what the LLM service says, before they are fetched
            message = "a message of the {role} has {count} images; only a user's may have any"
            context = {"field": "content", "role": self.role, "count": count}
            raise PydanticCustomError("image_role", message, context)
        return self


class JSONSchemaFormat(RequestModel):
    """A JSON Schema, and labels for it. All of it is enforced, strict or not.

    Attributes:
        definition: the schema as JSON text.
        strict: whether objects are closed that do not say so themselves.
    """

    name: str
    description: str | None = None
    definition: Annotated[str, BeforeValidator(_as_schema_text), Field(alias="schema")]
    strict: bool | None = None

    @model_validator(mode="before")
    @classmethod
    def _close_if_strict(cls, value: object) -> object:
        if isinstance(value, dict) and value.get("strict") is True:
            schema = value.get("schema")
            if isinstance(schema, dict):
                close(schema)
        return value


class ResponseFormat(RequestModel):
    """What the answer must be: any text, any JSON object, or JSON of a schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JSONSchemaFormat | None = None

    @model_validator(mode="after")
    def _has_its_field(self) -> ResponseFormat:
        if (self.type == "json_schema") != (self.json_schema is not None):
            message = "a JSON Schema and the type 'json_schema' need each other"
            raise PydanticCustomError("other_type", message, {"field": "json_schema"})
        return self


class StructuredOutputs(RequestModel):
    """What the answer must be, in one of three ways.

    Attributes:
        definition: a JSON Schema as JSON text.
        regex: an expression that the whole answer matches.
        grammar: in llguidance's dialect of Lark.
    """

    definition: Annotated[
        str | None, BeforeValidator(_as_optional_schema_text), Field(alias="json")
    ] = None
    regex: str | None = None
    grammar: str | None = None

    @model_validator(mode="after")
    def _is_one(self) -> StructuredOutputs:
        count = 3 - [self.definition, self.regex, self.grammar].count(None)
        if count != 1:
            message = "the answer's form is given in {count} ways; it must be given in one"
            raise PydanticCustomError("one_of", message, {"count": count})
        return self


class StreamOptions(RequestModel):
    """What a stream holds besides the text."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    include_obfuscation: Annotated[Any, _unsupported(False)] = None


@dataclass(frozen=True)
class ImageReference:
    """An image of a request, and the JSON path of its URL object."""

    param: str
    source: ImageURL


class ChatCompletionRequest(RequestModel):
    """The body of POST /v1/chat/completions. An unset field takes the LLM service's default."""

    model: str
    messages: Annotated[list[Message], Field(fail_fast=True, max_length=MAX_MESSAGE_COUNT)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    max_completion_tokens: Int32 | None = None
    max_tokens: Int32 | None = None
    temperature: Float | None = None
    top_p: Float | None = None
    seed: Int64 | None = None
    presence_penalty: Float | None = None
    frequency_penalty: Float | None = None
    stop: Annotated[StopStrings | None, BeforeValidator(_as_list)] = None
    n: Int32 | None = None
    logprobs: bool | None = None
    top_logprobs: Int32 | None = None
    logit_bias: Annotated[dict[str, Float] | None, BeforeValidator(_by_token_id)] = None
    response_format: ResponseFormat | None = None

    # Not OpenAI's; named as vLLM and LMDeploy name them.
    top_k: Int32 | None = None
    min_p: Float | None = None
    repetition_penalty: Float | None = None
    stop_token_ids: (
        Annotated[list[Int32], Field(fail_fast=True, max_length=MAX_STOP_COUNT)] | None
    ) = None
    min_tokens: Int32 | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    priority: Annotated[int, Field(gt=-(2**31), lt=2**31)] | None = None
    cache_salt: str | None = None
    structured_outputs: StructuredOutputs | None = None

    # Labels for the caller's own books: they ask for nothing.
    metadata: Any = None
    prompt_cache_key: Any = None
    safety_identifier: Any = None
    user: Any = None

    audio: Annotated[Any, _unsupported()] = None
    function_call: Annotated[Any, _unsupported("none")] = None
    functions: Annotated[Any, _unsupported([])] = None
    modalities: Annotated[Any, _unsupported(["text"])] = None
    moderation: Annotated[Any, _unsupported()] = None
    parallel_tool_calls: Annotated[Any, _unsupported(True, False)] = None
    prediction: Annotated[Any, _unsupported()] = None
    prompt_cache_options: Annotated[Any, _unsupported()] = None
    prompt_cache_retention: Annotated[Any, _unsupported("in_memory", "in-memory")] = None
    reasoning_effort: Annotated[Any, _unsupported("none")] = None
    service_tier: Annotated[Any, _unsupported("auto", "default")] = None
    store: Annotated[Any, _unsupported(False)] = None
    tool_choice: Annotated[Any, _unsupported("none", "auto")] = None
    tools: Annotated[Any, _unsupported([])] = None
    verbosity: Annotated[Any, _unsupported("medium")] = None
    web_search_options: Annotated[Any, _unsupported()] = None

    @model_validator(mode="after")
    def _consistent(self) -> ChatCompletionRequest:
        limits = (self.max_tokens, self.max_completion_tokens)
        if self.stream_options is not None and not self.stream:
            message = "options of a stream are given, but no stream is asked for"
            raise PydanticCustomError("stream_options", message, {"field": "stream_options"})
        if None not in limits and limits[0] != limits[1]:
            message = "the output limit is given twice, as {old} and as {new} tokens"
            context = {"field": "max_tokens", "old": limits[0], "new": limits[1]}
            raise PydanticCustomError("max_tokens", message, context)
        if self.top_logprobs and not self.logprobs:
            message = "{count} alternatives are asked for, but no log probabilities"
            context = {"field": "top_logprobs", "count": self.top_logprobs}
            raise PydanticCustomError("top_logprobs", message, context)
        if self.structured_outputs and self.response_format and self.response_format.type != "text":
            message = "the answer's form is given twice; the response format says it already"
            raise PydanticCustomError("two_formats", message, {"field": "structured_outputs"})
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

    def images(self) -> Iterator[ImageReference]:
        """Yields the images in their order."""
        for i, message in enumerate(self.messages):
            for j, part in enumerate(message.content):
                if part.image_url is not None:
                    param = f"messages[{i}].content[{j}].image_url"
                    yield ImageReference(param, part.image_url)


def parse_chat_request(body: bytes) -> ChatCompletionRequest:
    """Returns the request that a body holds.

    Raises:
        InvalidArgumentError: it is not JSON, or a field is unknown, missing or malformed.
        UnsupportedFieldError: a field asks for something of OpenAI's that we do not serve.
    """
    try:
        return ChatCompletionRequest.model_validate(read_json(body))
    except ValidationError as error:
        raise refusal(error.errors(include_url=False)[0]) from None
