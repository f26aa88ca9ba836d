"""The forms that an answer may be held to."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from gateway.openai.refusals import shown_kind
from gateway.openai.request_model import (
    MAX_ENTRY_COUNT,
    RequestModel,
    SchemaHolder,
    SchemaText,
    json_text,
)

# What stands for something else in a regular expression of Rust's regex crate.
META_CHARACTERS = re.compile(r"[\\.+*?()|\[\]{}^$#&~-]")


def _none_if_empty(value: object) -> object:
    return value or None


def _none_if_object_is_empty(value: object) -> object:
    return None if value == {} else value


def _as_schema(value: object) -> object:
    """Writes a schema as text; one that is text already stays so."""
    if isinstance(value, dict):
        return json_text(value)
    if value is None or isinstance(value, str):
        return value
    message = "a JSON Schema is {shown}; it must be an object"
    raise PydanticCustomError("schema_type", message, {"shown": shown_kind(value)})


SchemaOrText = Annotated[
    str | None,
    BeforeValidator(_as_schema, json_schema_input_type=dict[str, Any] | str | None),
]
Choices = Annotated[list[str], Field(fail_fast=True, max_length=MAX_ENTRY_COUNT)]
NoneIfEmpty = AfterValidator(_none_if_empty)
EmptyObject = Annotated[dict[str, Any], Field(max_length=0)]


def regex_of(choices: Sequence[str]) -> str:
    """Returns the regular expression that matches these texts alone, letter for letter."""
    return "|".join(META_CHARACTERS.sub(r"\\\g<0>", choice) for choice in choices)


class JSONSchemaFormat(SchemaHolder):
    """A JSON Schema, and labels for it. All of it is enforced, strict or not.

    Attributes:
        definition: the schema as JSON text.
    """

    name: str
    description: str | None = None
    definition: Annotated[SchemaText, Field(alias="schema")]


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
    """What the answer must be, in one of several ways.

    Attributes:
        definition: a JSON Schema as JSON text.
        regex: an expression that the whole answer matches.
        choice: one of these.
        grammar: in llguidance's dialect of Lark.
        json_object: any JSON object.
    """

    definition: Annotated[SchemaOrText, Field(alias="json")] = None
    regex: str | None = None
    choice: Choices | None = None
    grammar: str | None = None
    json_object: bool | None = None

    @model_validator(mode="after")
    def _is_one(self) -> StructuredOutputs:
        ways: list[object] = [self.definition, self.regex, self.grammar]
        ways += [self.choice or None, self.json_object or None]
        if (count := len(ways) - ways.count(None)) != 1:
            message = "the answer's form is given in {count} ways; it must be given in one"
            raise PydanticCustomError("one_of", message, {"count": count})
        return self


OptionalResponseFormat = Annotated[
    ResponseFormat | None,
    BeforeValidator(
        _none_if_object_is_empty, json_schema_input_type=ResponseFormat | EmptyObject | None
    ),
]
OptionalStructuredOutputs = Annotated[
    StructuredOutputs | None,
    BeforeValidator(
        _none_if_object_is_empty, json_schema_input_type=StructuredOutputs | EmptyObject | None
    ),
]
# A schema alone; an empty one asks for nothing.
OptionalSchema = Annotated[SchemaOrText, BeforeValidator(_none_if_object_is_empty), NoneIfEmpty]
