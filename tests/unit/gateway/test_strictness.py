"""A strict schema closes the objects that do not say themselves what else they may hold."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.openai.forms import JSONSchemaFormat

TEXT = {"type": "string"}
OPEN = {"type": "object", "properties": {"a": TEXT}}
CLOSED = OPEN | {"additionalProperties": False}


def sent(schema: dict[str, Any], strict: bool | None) -> Any:
    """Returns the schema that goes to the LLM service."""
    fields = {"name": "x", "schema": schema, "strict": strict}
    return json.loads(JSONSchemaFormat.model_validate(json.loads(json.dumps(fields))).definition)


@pytest.mark.parametrize(
    ("schema", "closed"),
    [
        (OPEN, CLOSED),
        ({"properties": {"a": TEXT}}, {"properties": {"a": TEXT}, "additionalProperties": False}),
        ({"anyOf": [OPEN, TEXT]}, {"anyOf": [CLOSED, TEXT]}),
        ({"items": OPEN, "$defs": {"b": OPEN}}, {"items": CLOSED, "$defs": {"b": CLOSED}}),
        (
            {"$defs": {"b": OPEN}, "allOf": [{"$ref": "#/$defs/b"}], "title": "x"},
            {"$defs": {"b": CLOSED}, "allOf": [{"$ref": "#/$defs/b"}], "title": "x"},
        ),
    ],
)
def test_objects_with_properties_are_closed(schema: dict[str, Any], closed: dict[str, Any]) -> None:
    assert sent(schema, strict=True) == closed
    assert sent(schema, strict=False) == sent(schema, strict=None) == schema


@pytest.mark.parametrize(
    "schema",
    [
        CLOSED,
        OPEN | {"additionalProperties": True},
        OPEN | {"additionalProperties": TEXT},
        OPEN | {"patternProperties": {"^x": TEXT}},
        {"type": "object"},
        {"type": "object", "properties": {}},
        {"enum": [OPEN], "default": OPEN},
        OPEN | {"required": ["a", "b"]},
        OPEN | {"minProperties": 2},
        {"allOf": [OPEN, {"properties": {"b": TEXT}}]},
        OPEN | {"anyOf": [{"properties": {"b": TEXT}}, {"properties": {"c": TEXT}}]},
        OPEN | {"$ref": "#/$defs/b", "$defs": {"b": {"properties": {"b": TEXT}}}},
    ],
)
def test_what_says_more_or_may_mean_more_stays_as_it_is(schema: dict[str, Any]) -> None:
    assert sent(schema, strict=True) == schema
