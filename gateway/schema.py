"""OpenAI's chat completion interface as data: requests, answers, errors, and their JSON paths."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NoReturn

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails, PydanticCustomError, from_json

from protos.errors import InvalidArgumentError, UnsupportedFieldError

MAX_PARAM_LENGTH = 200
# Lists fail fast and end here: pydantic would collect an error for every entry, and a small body of
# half a million bad ones would take seconds and gigabytes.
MAX_MESSAGES = 4096
MAX_PARTS = 1024
MAX_STOPS = 16
MAX_BIASES = 1024
UNSUPPORTED = "unsupported_field"

Int32 = Annotated[int, Field(ge=-(2**31), lt=2**31)]
Int64 = Annotated[int, Field(ge=-(2**63), lt=2**63)]
Float = Annotated[float, Field(allow_inf_nan=False)]
StopStrings = Annotated[list[str], Field(fail_fast=True, max_length=MAX_STOPS)]


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
        raise PydanticCustomError("content_type", "must be a string or a list of parts")
    return value


def _as_schema_text(value: object) -> object:
    if isinstance(value, dict):
        return json.dumps(value, ensure_ascii=False)
    raise PydanticCustomError("schema_type", "must be a JSON Schema: an object")


def _as_optional_schema_text(value: object) -> object:
    return value if value is None or isinstance(value, str) else _as_schema_text(value)


def _by_token_id(value: object) -> object:
    """Checks the keys of OpenAI's map of token ids, as strings, to biases."""
    if isinstance(value, dict):
        if len(value) > MAX_BIASES:
            message = "has {count} entries, at most {limit} are allowed"
            raise PydanticCustomError("biases", message, {"count": len(value), "limit": MAX_BIASES})
        for key in value:
            if not re.fullmatch(r"0|[1-9][0-9]{0,8}", key):
                raise PydanticCustomError("bias_key", "is no token id", {"field": key})
    return value


class RequestModel(BaseModel):
    """A JSON object of a request: unknown fields and values of another JSON type are refused."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


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
        other = "image_url" if self.type == "text" else "text"
        if getattr(self, self.type) is None:
            raise PydanticCustomError("missing", "Field required", {"field": self.type})
        if getattr(self, other) is not None:
            message = "a part of another type has this field"
            raise PydanticCustomError("other_type", message, {"field": other})
        return self


class Message(RequestModel):
    """One message of the conversation; a string as content has become one text part."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[
        list[ContentPart], Field(fail_fast=True, max_length=MAX_PARTS), BeforeValidator(_as_parts)
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
        if self.role != "user" and any(part.image_url for part in self.content):
            message = "only messages of the role 'user' may hold images"
            raise PydanticCustomError("image_role", message, {"field": "content"})
        return self


class JSONSchemaFormat(RequestModel):
    """A JSON Schema, and labels for it; its enforcement is strict whether asked for or not.

    Attributes:
        definition: the schema as JSON text.
    """

    name: str
    description: str | None = None
    definition: Annotated[str, BeforeValidator(_as_schema_text), Field(alias="schema")]
    strict: bool | None = None


class ResponseFormat(RequestModel):
    """What the answer must be: any text, any JSON object, or JSON of a schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JSONSchemaFormat | None = None

    @model_validator(mode="after")
    def _has_its_field(self) -> ResponseFormat:
        if (self.type == "json_schema") != (self.json_schema is not None):
            message = "goes with the type 'json_schema', and only with it"
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
        if [self.definition, self.regex, self.grammar].count(None) != 2:
            raise PydanticCustomError("one_of", "needs exactly one of json, regex, grammar")
        return self


@dataclass(frozen=True)
class Guide:
    """What an answer must be, as the services' contract has it, and where the request says so.

    Attributes:
        kind: the field of GuidedDecoding.
        source: its text; empty for "json_object".
        param: the JSON path that it was made from.
    """

    kind: Literal["json_object", "json_schema", "regex", "grammar"]
    source: str
    param: str


class StreamOptions(RequestModel):
    """What a stream holds besides the text."""

    include_usage: bool | None = None
    include_obfuscation: Annotated[Any, _unsupported(False)] = None


@dataclass(frozen=True)
class ImageReference:
    """An image of a request, and the JSON path of its URL object."""

    param: str
    source: ImageURL


class ChatCompletionRequest(RequestModel):
    """The body of POST /v1/chat/completions. An unset field takes the LLM service's default."""

    model: str
    messages: Annotated[list[Message], Field(fail_fast=True, min_length=1, max_length=MAX_MESSAGES)]
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
    stop_token_ids: Annotated[list[Int32], Field(fail_fast=True, max_length=MAX_STOPS)] | None = (
        None
    )
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
        if self.stream_options is not None and not self.stream:
            message = "only allowed when stream is true"
            raise PydanticCustomError("stream_options", message, {"field": "stream_options"})
        if None not in (limits := (self.max_tokens, self.max_completion_tokens)) and (
            limits[0] != limits[1]
        ):
            message = "differs from max_completion_tokens, which replaces it"
            raise PydanticCustomError("max_tokens", message, {"field": "max_tokens"})
        if self.top_logprobs and not self.logprobs:
            message = "only allowed when logprobs is true"
            raise PydanticCustomError("top_logprobs", message, {"field": "top_logprobs"})
        if self.structured_outputs is not None and self._format_guide is not None:
            message = "response_format says already what the answer must be"
            raise PydanticCustomError("two_formats", message, {"field": "structured_outputs"})
        return self

    @property
    def output_token_limit(self) -> int | None:
        """Most tokens to generate."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with the usage."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    @property
    def choice_count(self) -> int:
        """How many answers to generate."""
        return 1 if self.n is None else self.n

    @property
    def guide(self) -> Guide | None:
        """What the answer must be; None for any text."""
        if self.structured_outputs is None:
            return self._format_guide
        outputs = self.structured_outputs
        if outputs.definition is not None:
            return Guide("json_schema", outputs.definition, "structured_outputs.json")
        if outputs.regex is not None:
            return Guide("regex", outputs.regex, "structured_outputs.regex")
        return Guide("grammar", outputs.grammar or "", "structured_outputs.grammar")

    @property
    def _format_guide(self) -> Guide | None:
        if self.response_format is None or self.response_format.type == "text":
            return None
        if self.response_format.json_schema is None:
            return Guide("json_object", "", "response_format")
        definition = self.response_format.json_schema.definition
        return Guide("json_schema", definition, "response_format.json_schema.schema")

    def images(self) -> Iterator[ImageReference]:
        """Yields the images in their order."""
        for i, message in enumerate(self.messages):
            for j, part in enumerate(message.content):
                if part.image_url is not None:
                    param = f"messages[{i}].content[{j}].image_url"
                    yield ImageReference(param, part.image_url)

    def param_of(self, field: str) -> str:
        """Returns the JSON path of what a field of the services' contract was made from.

        Paths that begin with a field of this request are such paths already; a field that no
        request can set has none.
        """
        name = field.removeprefix("sampling.").removeprefix("chat.")
        name = re.sub(r"^(messages\[\d+\])\.parts\b", r"\1.content", name)
        if name.startswith("images"):
            return self._image_param(name)
        if name.startswith("stop."):
            return self._stop_param(name.split(".")[1].split("[")[0])
        if name.startswith("guided"):
            return self.guide.param if self.guide else ""
        if name.startswith("logit_bias["):
            return self._bias_param(name)
        name = {"choice_count": "n", "logprobs.top_count": "top_logprobs"}.get(name, name)
        return name if re.split(r"[.\[]", name)[0] in type(self).model_fields else ""

    def _image_param(self, name: str) -> str:
        params = [reference.param for reference in self.images()]
        index = re.match(r"images\[(\d+)\]", name)
        return params[int(index[1])] if index and int(index[1]) < len(params) else "messages"

    def _bias_param(self, name: str) -> str:
        index = int(name.removeprefix("logit_bias[").split("]")[0])
        return f"logit_bias.{list(self.logit_bias or {})[index]}"

    def _stop_param(self, name: str) -> str:
        limit = "max_tokens" if self.max_completion_tokens is None else "max_completion_tokens"
        params = {
            "max_token_count": limit,
            "min_token_count": "min_tokens",
            "strings": "stop",
            "token_ids": "stop_token_ids",
            "ignore_end_tokens": "ignore_eos",
        }
        return params.get(name, "")


def parse_chat_request(body: bytes) -> ChatCompletionRequest:
    """Returns the request that a body holds.

    Raises:
        InvalidArgumentError: it is not JSON, or a field is unknown, missing or malformed.
        UnsupportedFieldError: a field asks for something of OpenAI's that we do not serve.
    """
    try:
        return ChatCompletionRequest.model_validate(from_json(body, allow_inf_nan=False))
    except ValidationError as error:
        _refuse(error.errors(include_url=False, include_input=False)[0])
    except ValueError as error:
        raise InvalidArgumentError("the body is not valid JSON") from error


def _refuse(detail: ErrorDetails) -> NoReturn:
    param = _param(detail)
    cls = UnsupportedFieldError if detail["type"] == UNSUPPORTED else InvalidArgumentError
    reason = "unknown field" if detail["type"] == "extra_forbidden" else detail["msg"]
    raise cls(f"{param or 'the body'}: {reason}", field=param)


def _param(detail: ErrorDetails) -> str:
    """Returns the JSON path of an error, e.g. `messages[0].content[1].image_url.url`."""
    keys = [*detail["loc"]]
    if field := detail.get("ctx", {}).get("field"):
        keys.append(field)
    path = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in keys)
    return path.removeprefix(".")[:MAX_PARAM_LENGTH]


class Model(BaseModel):
    """A model that this server serves."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "internvl-serving"
    max_model_len: int


class ModelList(BaseModel):
    """All models that this server serves."""

    object: Literal["list"] = "list"
    data: list[Model]


class PromptTokensDetails(BaseModel):
    """Kinds of prompt tokens: image_tokens is ours, the other OpenAI's."""

    cached_tokens: int
    image_tokens: int


class CompletionUsage(BaseModel):
    """What a request cost."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class TopLogprob(BaseModel):
    """A token that might have come, and the natural logarithm of its probability."""

    token: str
    bytes: list[int]
    logprob: float


class ContentLogprob(TopLogprob):
    """A token of the answer, and the most probable tokens in its place, best first."""

    top_logprobs: list[TopLogprob]


class ChoiceLogprobs(BaseModel):
    """The log probabilities of an answer's tokens."""

    content: list[ContentLogprob]
    refusal: None = None


class AnswerMessage(BaseModel):
    """The model's answer."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class Choice(BaseModel):
    """One answer, and why it ended."""

    index: int
    message: AnswerMessage
    logprobs: ChoiceLogprobs | None
    finish_reason: Literal["stop", "length"]


class ChatCompletion(BaseModel):
    """The whole answer at once."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: CompletionUsage


class ErrorObject(BaseModel):
    """What went wrong, and which part of the request was at fault."""

    message: str
    type: str
    param: str | None
    code: str


class ErrorBody(BaseModel):
    """The body of every answer that is an error."""

    error: ErrorObject
