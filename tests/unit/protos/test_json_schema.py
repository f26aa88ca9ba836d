"""Which parts of a JSON Schema are schemas."""

from __future__ import annotations

from typing import Any

from protos.json_schema import MAX_DEPTH, subschemas, unknown_formats


def test_schemas_come_outer_first_and_in_their_order() -> None:
    schema = {
        "properties": {"b": {"items": [{"title": "first"}, {}]}, "a": {"items": {}}},
        "anyOf": [{}, True, {"not": {}}],
        "$defs": {"x y": {}},
        "additionalProperties": False,
    }
    assert [place for place, _ in subschemas(schema)] == [
        (),
        ("properties", "b"),
        ("properties", "b", "items", 0),
        ("properties", "b", "items", 1),
        ("properties", "a"),
        ("properties", "a", "items"),
        ("anyOf", 0),
        ("anyOf", 2),
        ("anyOf", 2, "not"),
        ("$defs", "x y"),
    ]


def test_values_and_names_are_no_schemas() -> None:
    schema: dict[str, Any] = {
        "enum": [{"not": {}}],
        "const": {"items": {}},
        "default": {"properties": {"a": {}}},
        "examples": [{"anyOf": [{}]}],
        "properties": {"properties": {}, "items": {}, "enum": {}},
        "x-made-up": {"items": {}},
        "dependencies": {"a": ["b"]},
        "anyOf": {"a": {}},
    }
    places = [place for place, _ in subschemas(schema)]
    assert places == [(), *[("properties", name) for name in schema["properties"]]]


def test_a_walk_has_an_end() -> None:
    schema: dict[str, Any] = {}
    for _ in range(5000):
        schema = {"items": schema}
    assert len(list(subschemas(schema))) == MAX_DEPTH + 1


def test_what_is_yielded_may_be_changed() -> None:
    schema: dict[str, Any] = {"not": {"not": {}}, "items": {}}
    for place, each in subschemas(schema):
        if place == ():
            del each["not"]
    assert [place for place, _ in subschemas(schema)] == [(), ("items",)]


def test_formats_that_are_notes_are_found() -> None:
    schema: dict[str, Any] = {
        "format": "uuid",
        "properties": {"format": {"format": "password"}, "b": {"items": {"format": "int32"}}},
        "enum": [{"format": "none"}],
        "anyOf": [{"format": None}, {"format": ["date"]}, {"format": ""}],
    }
    assert unknown_formats(schema) == [
        ("properties", "format", "format"),
        ("properties", "b", "items", "format"),
        ("anyOf", 2, "format"),
    ]
