"""The bounds that JSON Schemas set to numbers, and to how long other values are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from protos.json_schema import Schema

NUMBERS = frozenset({"fraction", "integer"})
# Of other kinds the keywords that bound a value's length.
LENGTHS = {
    "array": ("minItems", "maxItems"),
    "object": ("minProperties", "maxProperties"),
    "string": ("minLength", "maxLength"),
}
BOUNDS = frozenset(
    {
        *("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum"),
        *(name for names in LENGTHS.values() for name in names),
    }
)


def has_room(schemas: Sequence[Schema], kind: str) -> bool:
    """Whether a value of a kind, of which fractions are one, may be within the bounds of all."""
    if kind in NUMBERS:
        names = "minimum", "maximum"
        above, below = (_bounds(schemas, f"exclusive{name.capitalize()}") for name in names)
    elif kind in LENGTHS:
        names = LENGTHS[kind]
        above, below = [], []
    else:
        return True
    least, most = (_bounds(schemas, name) for name in names)
    if not (least or above) or not (most or below):
        return True
    if kind == "fraction":
        return _has_fraction(max(least + above), min(most + below), {*above, *below})
    smallest = max([*map(math.ceil, least), *(math.floor(bound) + 1 for bound in above)])
    return smallest <= min([*map(math.floor, most), *(math.ceil(bound) - 1 for bound in below)])


def only(kind: str, value: Any) -> Schema:
    """Returns the bounds of a kind that a value alone is within, or all that are as long."""
    if kind in NUMBERS:
        return {"minimum": value, "maximum": value}
    return dict.fromkeys(LENGTHS[kind], len(value)) if kind in LENGTHS else {}


def _has_fraction(lower: float, upper: float, excluded: set[float]) -> bool:
    if lower == upper:
        return lower not in excluded and lower != math.floor(lower)
    return lower < upper


def _bounds(schemas: Sequence[Schema], name: str) -> list[float]:
    """Returns the numbers that a keyword has; of Draft 4 the exclusive ones are none."""
    values = (schema.get(name) for schema in schemas)
    numbers = (each for each in values if isinstance(each, int | float) and type(each) is not bool)
    return [number for number in numbers if abs(number) < math.inf]
