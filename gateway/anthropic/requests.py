"""Anthropic's requests: what they may hold, and how a malformed one is refused."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import (
    BeforeValidator,
    Field,
    ValidationError,
    model_validator,
)
from pydantic_core import PydanticCustomError

from gateway.anthropic.screening import screen_messages
from gateway.openai.json_limits import read_json
from gateway.openai.options import ModelRequest, StopStrings
from gateway.openai.refusals import refusal, shown_kind
from gateway.openai.request_model import (
    MAX_ENTRY_COUNT,
    Float,
    Int32,
    Limit,
    RequestModel,
    SchemaHolder,
    SchemaText,
    Seed,
    Whole,
    json_text,
)
from gateway.openai.requests import MAX_MESSAGE_COUNT, ImageURL
from gateway.tools import Tool, ToolChoice
from protos.strictness import close

# The types of blocks that the messages of a role may have.
BLOCKS_OF_ROLES = {
    "user": ("text", "image", "tool_result"),
    "assistant": ("text", "tool_use", "thinking", "redacted_thinking"),
    "system": ("text",),
}
# What a block of a type must have.
NEEDED_FIELDS = {"text": ("text",), "image": ("source",), "tool_use": ("name", "input")}
# How the name of an image begins that has been taken out of the body.
ATTACHED = "attached:"


def _as_blocks(value: object) -> object:
    if isinstance(value, str):
        return [{"type": "text", "text": value}]
    if isinstance(value, list):
        return value
    message = "the content is {shown}; it must be a string or a list of blocks"
    raise PydanticCustomError("content_type", message, {"shown": shown_kind(value)})


def _as_blocks_if_any(value: object) -> object:
    return [] if value is None else _as_blocks(value)


def _as_input(value: object) -> object:
    if isinstance(value, dict):
        return json_text(value)
    message = "the input of a call is {shown}; it must be an object"
    raise PydanticCustomError("input_type", message, {"shown": shown_kind(value)})


class ImageSource(RequestModel):
    """An image's file, or where it is.

    Attributes:
        data: the file in base64, or the name of one that has been taken out of the body.
    """

    type: Literal["base64", "url"]
    media_type: str | None = None
    data: str | None = None
    url: str | None = None

    @model_validator(mode="after")
    def _has_its_field(self) -> ImageSource:
        if getattr(self, self.field) is None:
            message = "the image is missing"
            raise PydanticCustomError("no_field", message, {"field": self.field})
        return self

    @property
    def field(self) -> str:
        """The name of the field that has the image."""
        return "data" if self.type == "base64" else "url"

    @property
    def location(self) -> str:
        """A URL of the image, or its name."""
        data = self.data or ""
        if self.type == "url":
            return self.url or ""
        return data if data.startswith(ATTACHED) else f"data:;base64,{data}"


class Piece(RequestModel):
    """A text or an image."""

    type: str
    text: str | None = None
    source: ImageSource | None = None
    detail: Literal["auto", "low", "high", "original"] | None = None
    max_dynamic_patch: Annotated[int, Field(ge=1, lt=2**31), Whole] | None = None

    @model_validator(mode="after")
    def _has_its_fields(self) -> Piece:
        for name in NEEDED_FIELDS.get(self.type, ()):
            if getattr(self, name) is None:
                message = "a block of the type '{type}' has no {name}"
                context = {"field": name, "name": name, "type": self.type}
                raise PydanticCustomError("no_field", message, context)
        return self

    @property
    def image(self) -> ImageURL | None:
        """The image, if it is one."""
        if self.type != "image" or self.source is None:
            return None
        return ImageURL(
            url=self.source.location, detail=self.detail, max_dynamic_patch=self.max_dynamic_patch
        )


class ResultBlock(Piece):
    """A piece of what a tool has returned."""

    type: Literal["text", "image"]


class Block(Piece):
    """A piece of a message: its type, and the fields that the type names.

    Attributes:
        input: of a call: JSON text of an object.
        content: of a tool's result; a string has become one text.
    """

    type: Literal["text", "image", "tool_use", "tool_result", "thinking", "redacted_thinking"]
    name: str | None = None
    input: (
        Annotated[str, BeforeValidator(_as_input, json_schema_input_type=dict[str, Any])] | None
    ) = None
    content: Annotated[
        list[ResultBlock],
        Field(fail_fast=True, max_length=MAX_ENTRY_COUNT),
        BeforeValidator(_as_blocks_if_any, json_schema_input_type=list[ResultBlock] | str | None),
    ] = []
    is_error: bool | None = None

    @property
    def is_passed_over(self) -> bool:
        """Whether it is not read: what a model has thought."""
        return self.type in ("thinking", "redacted_thinking")


class MessageParam(RequestModel):
    """One message of the conversation; a string as content has become one text."""

    role: Literal["user", "assistant", "system"]
    content: Annotated[
        list[Block],
        Field(fail_fast=True, max_length=MAX_ENTRY_COUNT),
        BeforeValidator(_as_blocks, json_schema_input_type=list[Block] | str),
    ]

    @model_validator(mode="after")
    def _has_blocks_of_its_role(self) -> MessageParam:
        types = BLOCKS_OF_ROLES[self.role]
        for index, block in enumerate(self.content):
            if block.type not in types:
                message = "a message of the {role} may have blocks of {types}, not of '{type}'"
                context = {
                    "field": f"content[{index}].type",
                    "role": self.role,
                    "types": ", ".join(map(repr, types)),
                    "type": block.type,
                }
                raise PydanticCustomError("block_role", message, context)
        return self


class TextBlock(RequestModel):
    """A piece of the system's text."""

    type: Literal["text"] = "text"
    text: str


class ToolParam(SchemaHolder):
    """A tool that the client runs; others are the matter of `screening`.

    Attributes:
        input_schema: JSON text of the JSON Schema of its input.
    """

    schema_member: ClassVar[str] = "input_schema"

    type: Literal["custom"] | None = None
    name: str
    description: str | None = None
    input_schema: SchemaText

    @property
    def tool(self) -> Tool:
        """It as all dialects have it."""
        return Tool(self.name, self.description or "", self.input_schema, bool(self.strict))


class ToolChoiceParam(RequestModel):
    """Which tools the answer may call, or must."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None

    @model_validator(mode="after")
    def _has_its_name(self) -> ToolChoiceParam:
        if self.type == "tool" and self.name is None:
            message = "the choice of a tool names none"
            raise PydanticCustomError("no_field", message, {"field": "name"})
        return self

    @property
    def of_tools(self) -> ToolChoice:
        """It as all dialects have it."""
        if self.type == "tool" and self.name is not None:
            return ToolChoice.of_one(self.name)
        if self.type == "none":
            return ToolChoice("none")
        mode: Literal["auto", "required"] = "required" if self.type == "any" else "auto"
        return ToolChoice(mode, single=bool(self.disable_parallel_tool_use))


class OutputFormat(RequestModel):
    """What the answer must be: JSON of a schema, whose objects are closed.

    Attributes:
        definition: the schema as JSON text.
    """

    type: Literal["json_schema"]
    definition: Annotated[SchemaText, Field(alias="schema")]

    @model_validator(mode="before")
    @classmethod
    def _close(cls, value: object) -> object:
        if isinstance(value, dict) and isinstance(schema := value.get("schema"), dict):
            close(schema)
        return value


class OutputConfig(RequestModel):
    """What is asked of the answer."""

    format: OutputFormat | None = None


class PromptRequest(ModelRequest):
    """The body of POST /v1/messages/count_tokens."""

    messages: Annotated[list[MessageParam], Field(fail_fast=True, max_length=MAX_MESSAGE_COUNT)]
    system: Annotated[
        list[TextBlock],
        Field(fail_fast=True, max_length=MAX_ENTRY_COUNT),
        BeforeValidator(_as_blocks_if_any, json_schema_input_type=list[TextBlock] | str | None),
    ] = []
    tools: Annotated[list[ToolParam], Field(fail_fast=True, max_length=MAX_ENTRY_COUNT)] | None = (
        None
    )
    tool_choice: ToolChoiceParam | None = None
    output_config: OutputConfig | None = None
    output_format: OutputFormat | None = None

    @model_validator(mode="after")
    def _chooses_among_its_tools(self) -> PromptRequest:
        if self.tool_choice:
            self.tool_choice.of_tools.check([tool.name for tool in self.tools or ()])
        return self

    @property
    def choice_of_tools(self) -> ToolChoice | None:
        """Which tools may be called, or must; None where none may."""
        choice = self.tool_choice.of_tools if self.tool_choice else ToolChoice()
        return choice if self.tools and choice.mode != "none" else None

    @property
    def offered_tools(self) -> list[Tool] | None:
        """The tools that the model learns of."""
        return [tool.tool for tool in self.tools or ()] if self.choice_of_tools else None


class MessagesRequest(PromptRequest):
    """The body of POST /v1/messages. An unset field takes the LLM service's default."""

    max_tokens: Limit
    stop_sequences: StopStrings | None = None
    temperature: Float | None = None
    top_p: Float | None = None
    top_k: Int32 | None = None
    stream: bool | None = None

    # Not Anthropic's.
    seed: Seed | None = None
    min_p: Float | None = None
    repetition_penalty: Float | None = None
    skip_special_tokens: bool | None = None
    cache_salt: str | None = None
    priority: Annotated[int, Field(gt=-(2**31), lt=2**31), Whole] | None = None


Request = TypeVar("Request", bound=PromptRequest)


def parse_request(model: type[Request], body: bytes, strict_fields: bool = False) -> Request:
    """Returns the request that a body holds.

    Args:
        model: what it is.
        body: JSON.
        strict_fields: refuse unknown fields that ask for something, outside of messages.

    Raises:
        InvalidArgumentError: it is not JSON; a field is missing or malformed, or strictly unknown.
        UnsupportedFieldError: a field asks for something that we do not serve.
    """
    document = read_json(body)
    ignored = screen_messages(document, strict=strict_fields) if isinstance(document, dict) else []
    try:
        return model.model_validate(document, context=ignored)
    except ValidationError as error:
        raise refusal(error.errors(include_url=False)[0]) from None
