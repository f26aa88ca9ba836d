"""Random schemas of tools' arguments, none of which lets a model write for ever."""

from __future__ import annotations

import random
from typing import Any

NAMES = ["city", "a b", 'q"', "back\\slash", "日", "x"]


def arguments_schema(seed: int) -> dict[str, Any]:
    """Returns a schema of an object."""
    return _object(random.Random(seed), depth=2)


def _object(choice: random.Random, depth: int) -> dict[str, Any]:
    names = choice.sample(NAMES, choice.randint(0, 3))
    return {
        "type": "object",
        "properties": {name: _schema(choice, depth - 1) for name in names},
        "required": [name for name in names if choice.random() < 0.7],
        "additionalProperties": False,
    }


def _schema(choice: random.Random, depth: int) -> dict[str, Any]:
    kinds = [_string, _integer, _number, _constant, _pattern]
    if depth:
        kinds += [_object, _array, _alternatives]
    return choice.choice(kinds)(choice, depth)


def _string(choice: random.Random, depth: int) -> dict[str, Any]:
    return {"type": "string", "minLength": choice.randint(0, 2), "maxLength": choice.randint(2, 6)}


def _integer(choice: random.Random, depth: int) -> dict[str, Any]:
    least = choice.randint(-500, 500)
    return {"type": "integer", "minimum": least, "maximum": least + choice.randint(0, 99)}


def _number(choice: random.Random, depth: int) -> dict[str, Any]:
    # A decimal may have any number of places, and a weak model ends none.
    return {"type": "number", "enum": [choice.randint(-9, 9) / 4 for _ in range(3)]}


def _constant(choice: random.Random, depth: int) -> dict[str, Any]:
    return choice.choice(
        [{"type": "boolean"}, {"type": "null"}, {"const": "é}"}, {"enum": [1, "b"]}]
    )


def _pattern(choice: random.Random, depth: int) -> dict[str, Any]:
    return {"type": "string", "pattern": choice.choice(["^[a-c]{1,3}$", "^x?[0-9]{2}$"])}


def _array(choice: random.Random, depth: int) -> dict[str, Any]:
    least = choice.randint(0, 2)
    items = _schema(choice, depth - 1)
    return {"type": "array", "items": items, "minItems": least, "maxItems": least + 1}


def _alternatives(choice: random.Random, depth: int) -> dict[str, Any]:
    return {"anyOf": [_schema(choice, depth - 1) for _ in range(choice.randint(1, 3))]}
