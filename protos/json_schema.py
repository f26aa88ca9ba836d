"""JSON Schemas as all processes read them: where schemas stand in them, and which formats count."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

Schema = dict[str, Any]
# Names of keywords and properties, and indexes in lists, from the outermost schema on.
Place = tuple[str | int, ...]

HOLD_ONE = frozenset(
    {
        "additionalItems",
        "additionalProperties",
        "contains",
        "contentSchema",
        "else",
        "if",
        "items",
        "not",
        "propertyNames",
        "then",
        "unevaluatedItems",
        "unevaluatedProperties",
    }
)
HOLD_LIST = frozenset({"allOf", "anyOf", "items", "oneOf", "prefixItems"})
HOLD_NAMED = frozenset(
    {
        "$defs",
        "definitions",
        "dependencies",
        "dependentSchemas",
        "patternProperties",
        "properties",
    }
)
# What the service enforces. Any other format is a note, as JSON Schema has it.
FORMATS = frozenset(
    {
        "date",
        "date-time",
        "duration",
        "email",
        "hostname",
        "ipv4",
        "ipv6",
        "time",
        "uri",
        "uuid",
    }
)
# llguidance reads no JSON that is nested more deeply.
MAX_DEPTH = 128


def subschemas(root: Schema) -> Iterator[tuple[Place, Schema]]:
    """Yields each schema that is an object, with its place; outer ones first, in their order.

    What has been yielded may be changed before the next is taken. Schemas at places of more than
    MAX_DEPTH steps are left out.
    """
    waiting: list[tuple[Place, Schema]] = [((), root)]
    while waiting:
        place, schema = waiting.pop()
        yield place, schema
        if len(place) < MAX_DEPTH:
            waiting.extend(reversed(list(_children(place, schema))))


def unknown_formats(root: Schema) -> list[Place]:
    """Returns where formats stand that are notes: strings there may be of any form."""
    return [(*place, "format") for place, schema in subschemas(root) if has_unknown_format(schema)]


def has_unknown_format(schema: Schema) -> bool:
    """Whether one schema names a format that is not among FORMATS."""
    name = schema.get("format")
    return isinstance(name, str) and name not in FORMATS


def _children(place: Place, schema: Schema) -> Iterator[tuple[Place, Schema]]:
    for name, value in schema.items():
        if name in HOLD_ONE and isinstance(value, dict):
            yield (*place, name), value
        elif name in HOLD_NAMED and isinstance(value, dict):
            yield from _entries((*place, name), value.items())
        elif name in HOLD_LIST and isinstance(value, list):
            yield from _entries((*place, name), enumerate(value))


def _entries(place: Place, entries: Any) -> Iterator[tuple[Place, Schema]]:
    for key, value in entries:
        if isinstance(value, dict):
            yield (*place, key), value
