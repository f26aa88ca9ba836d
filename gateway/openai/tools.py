"""Tools in OpenAI's requests: their definitions, and the choice among them."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from gateway.openai.refusals import shown
from gateway.openai.request_model import MAX_ENTRY_COUNT, RequestModel, SchemaHolder, SchemaText
from gateway.tools import Tool, ToolChoice


class FunctionDefinition(SchemaHolder):
    """A function that the model may call.

    Attributes:
        parameters: the JSON Schema of its arguments as JSON text.
    """

    schema_member: ClassVar[str] = "parameters"

    name: str
    description: str | None = None
    parameters: SchemaText | None = None

    @property
    def tool(self) -> Tool:
        """It as all dialects have it."""
        return Tool(self.name, self.description or "", self.parameters or "", bool(self.strict))


class ToolDefinition(RequestModel):
    """A tool that the model may call; other types are the matter of `screening`."""

    type: Literal["function"] = "function"
    function: FunctionDefinition


class NamedFunction(RequestModel):
    """A function of those that are given, by its name."""

    name: str


class NamedTool(RequestModel):
    """A tool of those that are given, by its name."""

    type: Literal["function"] = "function"
    function: NamedFunction


class AllowedTools(RequestModel):
    """Those of the tools that may be called, and whether one must."""

    mode: Literal["auto", "required"]
    tools: Annotated[
        list[NamedTool], Field(fail_fast=True, min_length=1, max_length=MAX_ENTRY_COUNT)
    ]


def _as_choice(value: object) -> object:
    if not isinstance(value, str):
        return value
    if value not in ("none", "auto", "required"):
        message = (
            "the choice of tools is {shown}; it must be 'none', 'auto' or 'required', or name one"
        )
        raise PydanticCustomError("choice", message, {"shown": shown(value)})
    return {"type": value}


class ChosenTools(RequestModel):
    """Which tools the answer may call, or must; a word alone has become a type."""

    type: Literal["none", "auto", "required", "function", "allowed_tools"]
    function: NamedFunction | None = None
    allowed_tools: AllowedTools | None = None

    @model_validator(mode="after")
    def _has_its_field(self) -> ChosenTools:
        if self.type in ("function", "allowed_tools") and getattr(self, self.type) is None:
            message = "the choice of tools names none"
            raise PydanticCustomError("no_field", message, {"field": self.type})
        return self

    @property
    def of_tools(self) -> ToolChoice:
        """It as all dialects have it."""
        if self.type == "function" and self.function:
            return ToolChoice.of_one(self.function.name)
        if self.type == "allowed_tools" and self.allowed_tools:
            names = tuple(tool.function.name for tool in self.allowed_tools.tools)
            return ToolChoice(self.allowed_tools.mode, names)
        return ToolChoice("required" if self.type == "required" else "auto")


def _as_older_choice(value: object) -> object:
    if value in (None, "none", "auto"):
        return value and ToolChoice(single=True)
    if isinstance(value, dict) and isinstance(value.get("name"), str):
        return ToolChoice.of_one(value["name"])
    message = (
        "the choice of a function is {shown}; it must be 'none', 'auto' or an object with its name"
    )
    raise PydanticCustomError("choice", message, {"shown": shown(value)})


OlderChoice = Annotated[
    ToolChoice | None,
    BeforeValidator(
        _as_older_choice, json_schema_input_type=Literal["none", "auto"] | NamedFunction | None
    ),
]
ChoiceOrWord = Annotated[
    ChosenTools | None,
    BeforeValidator(
        _as_choice,
        json_schema_input_type=Literal["none", "auto", "required"] | ChosenTools | None,
    ),
]
Tools = Annotated[list[ToolDefinition], Field(fail_fast=True, max_length=MAX_ENTRY_COUNT)]
Functions = Annotated[list[FunctionDefinition], Field(fail_fast=True, max_length=MAX_ENTRY_COUNT)]


def without_barred_tools(body: dict[str, Any]) -> dict[str, Any]:
    """Returns a request without the tools that it forbids to call: they need not even be right."""
    barred = {"tools": body.get("tool_choice"), "functions": body.get("function_call")}
    names = [name for name, choice in barred.items() if choice in ("none", {"type": "none"})]
    return {name: value for name, value in body.items() if name not in names}
