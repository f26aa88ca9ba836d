"""What the models of all requests are made of: their base, and the types of their values."""

from __future__ import annotations

import json
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from gateway.openai.refusals import shown_kind
from protos.strictness import close

# Names of the JSON that pydantic's own methods have, and what they are called here.
ATTRIBUTES = {"schema": "definition", "json": "definition"}


def _as_whole(value: object) -> object:
    """Returns 256.0 as 256: to JSON they are the same."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Whole = BeforeValidator(_as_whole)
Int32 = Annotated[int, Field(ge=-(2**31), lt=2**31), Whole]
# Clients send caps of their own, larger than any context.
Limit = Annotated[int, Field(ge=-(2**31), lt=2**63), Whole]
Seed = Annotated[int, Field(ge=-(2**63), lt=2**64), Whole]
Float = Annotated[float, Field(allow_inf_nan=False)]


# Bound against abuse, far above the contract's own limits: pydantic would collect an error for
# every entry, and a small body of half a million bad ones would take seconds and gigabytes.
MAX_ENTRY_COUNT = 1024


def json_text(value: object) -> str:
    """Returns JSON; raises PydanticCustomError for a number that is none."""
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except ValueError:
        message = "a number is infinite; it must be at most 1.7e308"
        raise PydanticCustomError("number", message) from None


def _as_schema_text(value: object) -> object:
    if isinstance(value, dict):
        return json_text(value)
    message = "a JSON Schema is {shown}; it must be an object"
    raise PydanticCustomError("schema_type", message, {"shown": shown_kind(value)})


SchemaText = Annotated[str, BeforeValidator(_as_schema_text, json_schema_input_type=dict[str, Any])]


class RequestModel(BaseModel):
    """A JSON object of a request: values of another JSON type are refused.

    Fields that it does not have are the matter of `screening`.
    """

    model_config = ConfigDict(extra="ignore", strict=True, frozen=True)

    def at(self, path: str) -> Any:
        """Returns what stands at a JSON path of names, e.g. "stop"; None where nothing does."""
        value: Any = self
        for name in path.split("."):
            value = None if value is None else getattr(value, ATTRIBUTES.get(name, name))
        return value


class SchemaHolder(RequestModel):
    """An object with a JSON Schema, which it may want closed.

    Attributes:
        schema_member: the name of the schema in the JSON.
        strict: whether objects are closed that do not say so themselves.
    """

    schema_member: ClassVar[str] = "schema"

    strict: bool | None = None

    @model_validator(mode="before")
    @classmethod
    def _close_if_strict(cls, value: object) -> object:
        if isinstance(value, dict) and value.get("strict") is True:
            schema = value.get(cls.schema_member)
            if isinstance(schema, dict):
                close(schema)
        return value
