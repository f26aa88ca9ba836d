"""OpenAI's Responses: what a request may hold, where nothing is kept of earlier ones."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    ValidationInfo,
    model_validator,
)
from pydantic_core import ErrorDetails, PydanticCustomError

from gateway.openai.json_limits import read_json
from gateway.openai.options import SamplingOptions
from gateway.openai.refusals import refusal, shown, shown_kind
from gateway.openai.request_model import (
    MAX_ENTRY_COUNT,
    Int32,
    Limit,
    RequestModel,
    SchemaHolder,
    SchemaText,
    Whole,
)
from gateway.openai.requests import FunctionCall, ImageURL
from gateway.openai.responses_screening import screen_responses
from gateway.openai.tools import FunctionDefinition, without_barred_tools
from gateway.tools import ToolChoice
from protos.errors import InvalidArgumentError

# Bound against abuse, far above the contract's own limit; see `models`.
MAX_ITEM_COUNT = 4096
# Of a tool's members those that an answer always has.
NO_SCHEMA = {"description": None, "parameters": None, "strict": False}
LOGPROBS = "message.output_text.logprobs"
# The field that each type of part names.
PART_FIELDS = {
    "input_text": "text",
    "output_text": "text",
    "refusal": "refusal",
    "input_image": "image_url",
}


class InputPart(RequestModel):
    """A piece of a message or of a tool's output: its type, and the field that the type names."""

    type: Literal["input_text", "output_text", "refusal", "input_image"]
    text: str | None = None
    refusal: str | None = None
    image_url: str | None = None
    detail: Literal["auto", "low", "high", "original"] | None = None
    max_dynamic_patch: Annotated[int, Field(ge=1, lt=2**31), Whole] | None = None

    @property
    def field(self) -> str:
        """The name of the field that it has."""
        return PART_FIELDS[self.type]

    @property
    def words(self) -> str | None:
        """The text, if it is one."""
        return None if self.type == "input_image" else getattr(self, self.field)

    @property
    def image(self) -> ImageURL | None:
        """The image, if it is one."""
        if self.type != "input_image" or self.image_url is None:
            return None
        return ImageURL(
            url=self.image_url, detail=self.detail, max_dynamic_patch=self.max_dynamic_patch
        )

    @model_validator(mode="after")
    def _has_its_field(self) -> InputPart:
        if getattr(self, self.field) is None:
            what = (
                "an image part has no image"
                if self.field == "image_url"
                else "a text part has no text"
            )
            raise PydanticCustomError("no_field", what, {"field": self.field})
        return self


class BareText(InputPart):
    """A text that the client wrote in the place of a list of parts."""


def _as_parts(value: object, info: ValidationInfo) -> object:
    if isinstance(value, str):
        return [BareText(type="input_text", text=value)]
    if isinstance(value, list):
        return value
    message = "{what} is {shown}; it must be a string or a list of parts"
    what = "a tool's output" if info.field_name == "output" else "a message's content"
    raise PydanticCustomError("content_type", message, {"what": what, "shown": shown_kind(value)})


Parts = Annotated[
    list[InputPart],
    Field(fail_fast=True, max_length=MAX_ENTRY_COUNT),
    BeforeValidator(_as_parts, json_schema_input_type=str | list[InputPart]),
]


class InputMessage(RequestModel):
    """What somebody said."""

    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: Parts

    @model_validator(mode="after")
    def _shows_as_user(self) -> InputMessage:
        if self.role != "user" and any(part.image for part in self.content):
            message = "only a message of the user may have images: show them in one"
            raise PydanticCustomError("image_role", message, {"field": "content"})
        return self


class BareMessage(InputMessage):
    """A text that the client wrote in the place of a list of items."""


class InputCall(FunctionCall):
    """A call of a tool that the assistant has made."""

    type: Literal["function_call"]


class CallOutput(RequestModel):
    """What a tool returned."""

    type: Literal["function_call_output"]
    output: Parts


class Reasoning(RequestModel):
    """What a model has thought, in a history of another server's; it is not read."""

    type: Literal["reasoning"]


def _kind(value: object) -> object:
    """Returns the type of an item; one that has none is a message."""
    if isinstance(value, dict):
        return value.get("type", "message")
    return getattr(value, "type", None)


InputItem = Annotated[
    Annotated[InputMessage, Tag("message")]
    | Annotated[InputCall, Tag("function_call")]
    | Annotated[CallOutput, Tag("function_call_output")]
    | Annotated[Reasoning, Tag("reasoning")],
    Discriminator(
        _kind,
        custom_error_type="item_type",
        custom_error_message=(
            "an item must be an object of the type 'message', 'function_call',"
            " 'function_call_output' or 'reasoning'"
        ),
    ),
]


def _as_items(value: object) -> object:
    if isinstance(value, str):
        part = BareText(type="input_text", text=value)
        return [BareMessage(role="user", content=[part])]
    if isinstance(value, list):
        return value
    message = "the input is {shown}; it must be a string or a list of items"
    raise PydanticCustomError("input_type", message, {"shown": shown_kind(value)})


class TextFormat(SchemaHolder):
    """What the answer must be: any text, any JSON object, or JSON of a schema.

    Attributes:
        definition: the schema as JSON text.
    """

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    description: str | None = None
    definition: Annotated[SchemaText | None, Field(alias="schema")] = None

    @model_validator(mode="after")
    def _has_its_field(self) -> TextFormat:
        if (self.type == "json_schema") != (self.definition is not None):
            message = "a JSON Schema and the type 'json_schema' need each other"
            raise PydanticCustomError("other_type", message, {"field": "schema"})
        return self


class TextOptions(RequestModel):
    """How the answer's text is written."""

    format: TextFormat | None = None


class FunctionTool(FunctionDefinition):
    """A tool that the model may call; other types are the matter of `responses_screening`."""

    type: Literal["function"]


class ToolName(RequestModel):
    """A tool of those that are given, by its name."""

    type: Literal["function"] = "function"
    name: str


class ChoiceOfTools(RequestModel):
    """Which tools the answer may call, or must; a word alone has become a type."""

    type: Literal["none", "auto", "required", "function", "allowed_tools"]
    name: str | None = None
    mode: Literal["auto", "required"] | None = None
    tools: (
        Annotated[list[ToolName], Field(fail_fast=True, min_length=1, max_length=MAX_ENTRY_COUNT)]
        | None
    ) = None

    @property
    def of_tools(self) -> ToolChoice:
        """It as all dialects have it."""
        if self.type == "function":
            return ToolChoice.of_one(self.name or "")
        if self.type == "allowed_tools":
            names = tuple(tool.name for tool in self.tools or ())
            return ToolChoice(self.mode or "auto", names)
        return ToolChoice(self.type)

    @model_validator(mode="after")
    def _has_its_field(self) -> ChoiceOfTools:
        needed = {"function": ["name"], "allowed_tools": ["mode", "tools"]}.get(self.type, [])
        for name in needed:
            if getattr(self, name) is None:
                message = "a choice of tools of the type '{type}' needs '{field}'"
                raise PydanticCustomError("no_field", message, {"type": self.type, "field": name})
        return self


ChoiceWord = Literal["none", "auto", "required"]


def _as_choice(value: object) -> object:
    if not isinstance(value, str):
        return value
    if value not in ("none", "auto", "required"):
        message = (
            "the choice of tools is {shown}; it must be 'none', 'auto' or 'required',"
            " or an object that names a tool"
        )
        raise PydanticCustomError("choice", message, {"shown": shown(value)})
    return {"type": value}


class ResponsesRequest(SamplingOptions):
    """The body of POST /v1/responses. An unset field takes the LLM service's default."""

    input: Annotated[
        list[InputItem],
        Field(fail_fast=True, max_length=MAX_ITEM_COUNT),
        BeforeValidator(_as_items, json_schema_input_type=str | list[InputItem]),
    ]
    instructions: str | None = None
    max_output_tokens: Limit | None = None
    include: Annotated[list[str], Field(fail_fast=True, max_length=MAX_ENTRY_COUNT)] | None = None
    top_logprobs: Int32 | None = None
    text: TextOptions | None = None
    tools: (
        Annotated[list[FunctionTool], Field(fail_fast=True, max_length=MAX_ENTRY_COUNT)] | None
    ) = None
    tool_choice: Annotated[
        ChoiceOfTools | None,
        BeforeValidator(_as_choice, json_schema_input_type=ChoiceWord | ChoiceOfTools | None),
    ] = None
    parallel_tool_calls: bool | None = None
    truncation: Literal["auto", "disabled"] | None = None

    # Given back in the answer.
    metadata: dict[str, str] | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None

    @model_validator(mode="after")
    def _consistent(self) -> ResponsesRequest:
        if self.top_logprobs and not self.wants_logprobs:
            message = "{count} alternatives are asked for, but 'include' has no '{name}'"
            context = {"field": "top_logprobs", "count": self.top_logprobs, "name": LOGPROBS}
            raise PydanticCustomError("top_logprobs", message, context)
        if self.tool_choice:
            self._choice.check([tool.name for tool in self.tools or ()])
        return self

    @property
    def wants_logprobs(self) -> bool:
        """Whether the tokens' log probabilities are wanted."""
        return LOGPROBS in (self.include or ())

    @property
    def alternative_count(self) -> int | None:
        """How many alternatives to a token are wanted; nothing where no log probabilities are."""
        return (self.top_logprobs or 0) if self.wants_logprobs else None

    @property
    def choice_of_tools(self) -> ToolChoice | None:
        """Which of the tools may be called; nothing where there are none."""
        return self._choice if self.tools else None

    @property
    def _choice(self) -> ToolChoice:
        choice = self.tool_choice.of_tools if self.tool_choice else ToolChoice()
        return replace(choice, single=True) if self.parallel_tool_calls is False else choice

    def items(self) -> Iterator[tuple[str, InputItem]]:
        """Yields the items in their order, each with its JSON path."""
        for index, item in enumerate(self.input):
            yield "input" if isinstance(item, BareMessage) else f"input[{index}]", item


def _echo(document: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the members of an answer that repeat its request; defaults are those of the model.

    What asks for a thing that is never done here says what is done.
    """
    given = {name: value for name, value in document.items() if value is not None}
    text = given.get("text") or {}
    return {
        "background": False,
        "frequency_penalty": given.get("frequency_penalty", 0),
        "instructions": given.get("instructions"),
        "max_output_tokens": given.get("max_output_tokens"),
        "max_tool_calls": None,
        "metadata": given.get("metadata", {}),
        "parallel_tool_calls": given.get("parallel_tool_calls", True),
        "presence_penalty": given.get("presence_penalty", 0),
        "previous_response_id": None,
        "prompt_cache_key": given.get("prompt_cache_key"),
        "reasoning": {"effort": None, "summary": None},
        "safety_identifier": given.get("safety_identifier"),
        "service_tier": "default",
        "store": False,
        "temperature": given.get("temperature", 0),
        "text": {**text, "format": text.get("format") or {"type": "text"}},
        "tool_choice": given.get("tool_choice") or "auto",
        "tools": [NO_SCHEMA | tool for tool in given.get("tools", [])],
        "top_logprobs": given.get("top_logprobs", 0),
        "top_p": given.get("top_p", 1),
        "truncation": "disabled",
        "user": given.get("user"),
    }


def _ascii(value: dict[str, Any]) -> str:
    try:
        return json.dumps(value, separators=(",", ":"), allow_nan=False)
    except ValueError:
        raise InvalidArgumentError("a number is infinite; it must be at most 1.7e308") from None


def parse_responses_request(
    body: bytes, strict_fields: bool = False
) -> tuple[ResponsesRequest, str]:
    """Returns the request that a body holds, and as JSON the members of its answer that repeat it.

    Args:
        body: JSON.
        strict_fields: refuse unknown fields that ask for something, outside of the input.

    Raises:
        InvalidArgumentError: it is not JSON; a field is missing or malformed, or strictly unknown.
        UnsupportedFieldError: a field asks for something that we do not serve.
    """
    document = read_json(body)
    ignored = []
    if isinstance(document, dict):
        document = without_barred_tools(document)
        ignored = screen_responses(document, strict=strict_fields)
    try:
        request = ResponsesRequest.model_validate(document, context=ignored)
    except ValidationError as error:
        raise refusal(_as_written(error.errors(include_url=False)[0])) from None
    return request, _ascii(_echo(document))


def _as_written(detail: ErrorDetails) -> ErrorDetails:
    """Takes an item's type out of the place of an error: pydantic has it behind the index."""
    first, *others = detail["loc"] or ("",)
    if first == "input" and len(others) > 1:
        detail["loc"] = (first, others[0], *others[2:])
    return detail
