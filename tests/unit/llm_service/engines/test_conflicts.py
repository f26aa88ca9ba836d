"""Schemas that exclude each other: as libraries write them, and what is proven of any."""

from __future__ import annotations

import json
import random
from itertools import combinations, product
from typing import Any

import pytest
from jsonschema import Draft7Validator, Draft202012Validator  # type: ignore[import-untyped]

from llm_service.engines.conflicts import Conflicts
from llm_service.engines.schemas import lean

TEXT = {"type": "string"}


def record(kind: Any, **more: Any) -> dict[str, Any]:
    """Returns the schema of an object whose `kind` is so; it must have one."""
    properties = {"kind": kind} if isinstance(kind, dict) else {"kind": {"const": kind}}
    return {"type": "object", "properties": properties, "required": ["kind"], **more}


def referring(*branches: Any) -> dict[str, Any]:
    """Returns a union of references to these, as pydantic and OpenAPI's generators write it."""
    names = [f"Branch {index}/~" for index in range(len(branches))]
    pointers = [name.replace("~", "~0").replace("/", "~1") for name in names]
    references = [{"$ref": "#/$defs/" + pointer.replace(" ", "%20")} for pointer in pointers]
    return {"oneOf": references, "$defs": dict(zip(names, branches, strict=True))}


EXCLUSIVE: dict[str, dict[str, Any]] = {
    "types": {"oneOf": [TEXT, {"type": ["integer", "null"]}]},
    "types by const": {"oneOf": [{"enum": [1, 2.5]}, {"const": "a"}]},
    "numbers": {"oneOf": [{"const": 1}, {"enum": [2, 3.5]}]},
    "a boolean is no number": {"oneOf": [{"const": 1}, {"const": True}]},
    "objects as values": {"oneOf": [{"const": {"a": 1}}, {"const": {"a": 2}}]},
    "lists as values": {"oneOf": [{"const": [1]}, {"const": [2]}, {"enum": [[1, 2], 1]}]},
    "by a const": {"oneOf": [record("cat"), record("dog"), record(3)]},
    "by an enum": {"oneOf": [record({"enum": [1, 2]}), record({"enum": [3]})]},
    "required once": {"oneOf": [record(1), record(2, required=[])]},
    "references": referring(record("cat"), record(2), {"type": "null"}),
    "definitions of old": {
        "oneOf": [{"$ref": "#/definitions/a"}, {"type": "null"}],
        "definitions": {"a": record(1)},
    },
    "references to references": {
        "oneOf": [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/c"}],
        "$defs": {"a": {"$ref": "#/$defs/b"}, "b": record(1), "c": record(2)},
    },
    "into a list": {
        "oneOf": [{"$ref": "#/$defs/all/anyOf/0"}, {"$ref": "#/$defs/all/anyOf/1"}],
        "$defs": {"all": {"anyOf": [record(1), record(2)]}},
    },
    "a base and more": {
        "oneOf": [
            {"allOf": [{"$ref": "#/$defs/base"}, {"properties": {"kind": {"const": kind}}}]}
            for kind in (1, 2)
        ],
        "$defs": {"base": record({"type": "integer"})},
    },
    "a reference and more": {
        "oneOf": [
            {"$ref": "#/$defs/base", "properties": {"kind": {"const": kind}}} for kind in (1, 2)
        ],
        "$defs": {"base": record({"type": "integer"})},
    },
    "what stands beside": record({})
    | {"oneOf": [{"properties": record(n)["properties"]} for n in (1, 2)]},
    "a tree": {
        "$ref": "#/$defs/tree",
        "$defs": {
            "tree": {"oneOf": [{"$ref": "#/$defs/leaf"}, {"$ref": "#/$defs/fork"}]},
            "leaf": record(1),
            "fork": record(2, properties={"kind": {"const": 2}, "left": {"$ref": "#/$defs/tree"}}),
        },
    },
    "a nullable branch": {"oneOf": [{"anyOf": [record(1), record(2)]}, record(3)]},
    "closed objects": {
        "oneOf": [
            {"type": "object", "required": ["a"], "properties": {"a": TEXT}},
            {
                "type": "object",
                "required": ["b"],
                "properties": {"b": TEXT},
                "additionalProperties": False,
            },
        ]
    },
    "properties of properties": {
        "oneOf": [
            {"type": "object", "properties": {"p": record(n)}, "required": ["p"]} for n in (1, 2)
        ]
    },
    "ranges": {
        "oneOf": [
            {"type": "number", "exclusiveMaximum": 0},
            {"type": "number", "minimum": 0, "maximum": 1},
            {"type": "number", "exclusiveMinimum": 1},
        ]
    },
    "ranges of integers": {
        "oneOf": [{"maximum": 1.5}, {"minimum": 1.7, "maximum": 3}, {"exclusiveMinimum": 3}],
        "type": "integer",
    },
    "ranges of many schemas": {
        "type": "number",
        "minimum": 1,
        "oneOf": [{"allOf": [{"maximum": 0}, {}]}, {"exclusiveMaximum": 2}],
    },
    "a range and values": {"oneOf": [{"minimum": 2, "maxLength": 0}, {"enum": [1, 1.5, "a"]}]},
    "by a range": {"oneOf": [record({"type": "number", "minimum": 1}), record(0)]},
    "lengths": {
        "oneOf": [
            {"type": ["string", "array"], "maxLength": 0, "maxItems": 0},
            {"type": ["string", "array"], "minLength": 1, "minItems": 1},
        ]
    },
    "nothing": {"oneOf": [False, TEXT, {"not": True}]},
    "one": {"oneOf": [{}]},
}


@pytest.mark.parametrize("name", EXCLUSIVE)
def test_a_one_of_whose_branches_exclude_each_other_becomes_an_any_of(name: str) -> None:
    schema = EXCLUSIVE[name]
    left = lean(json.dumps(schema))
    assert '"oneOf"' not in left
    assert '"anyOf"' in left
    for one, other in combinations(schema.get("oneOf", []), 2):
        both = {**schema, "oneOf": True, "allOf": [one, other]}
        del both["oneOf"]
        assert values_of(both) == []


OVERLAPPING: dict[str, dict[str, Any]] = {
    "numbers": {"oneOf": [{"type": "number"}, {"type": "integer"}]},
    "the same number": {"oneOf": [{"const": 1}, {"const": 1.0}]},
    "a common bound": {
        "oneOf": [{"type": "number", "maximum": 1}, {"type": "integer", "minimum": 1}]
    },
    "ranges of numbers alone": {"oneOf": [{"maximum": 0}, {"minimum": 1}]},
    "a fraction between": {
        "oneOf": [{"type": "number", "maximum": 1.5}, {"type": "number", "exclusiveMinimum": 1.4}]
    },
    "bounds that are none": {
        "oneOf": [
            {"type": "number", "minimum": 1, "exclusiveMinimum": True},
            {"type": "number", "maximum": 1},
        ]
    },
    "patterns": {"oneOf": [{"type": "string", "pattern": f"^{first}"} for first in "ab"]},
    "a common value": {"oneOf": [{"enum": ["a", "b"]}, {"enum": ["b", "c"]}]},
    "what need not be there": {"oneOf": [record(1, required=[]), record(2, required=[])]},
    "no objects": {"oneOf": [{k: v for k, v in record(n).items() if k != "type"} for n in (1, 2)]},
    "a common kind": {"oneOf": [record({"enum": [1, 2]}), record({"enum": [2, 3]})]},
    "an unknown reference": {"oneOf": [{"$ref": "https://example.com/a"}, TEXT]},
    "an anchor": {"oneOf": [{"$ref": "#a"}, {"type": "null"}], "$defs": {"a": {"$anchor": "a"}}},
    "nowhere": {"oneOf": [{"$ref": "#/$defs/a"}, TEXT]},
    "a circle": {
        "oneOf": [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/b"}],
        "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}},
    },
    "endless objects": {
        "oneOf": [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/a"}],
        "$defs": {"a": record({"$ref": "#/$defs/a"})},
    },
    "names by pattern": {
        "oneOf": [
            record(1),
            {"type": "object", "patternProperties": {"d": {}}, "additionalProperties": False},
        ]
    },
    "beside an any_of": {"anyOf": [TEXT], "oneOf": [{"const": "a"}, {"const": "b"}]},
}


@pytest.mark.parametrize("name", OVERLAPPING)
def test_what_is_not_proven_stays(name: str) -> None:
    source = json.dumps(OVERLAPPING[name], indent=1)
    assert lean(source) == source


def test_a_reference_is_read_from_the_nearest_base_on() -> None:
    outer = referring(record(1), TEXT)
    based = {"items": {"$id": "https://example.com/inner", **referring(record(1), record(1))}}
    assert '"oneOf"' in lean(json.dumps({**based, "$defs": outer["$defs"]}))
    assert '"oneOf"' not in lean(json.dumps({"$id": "https://example.com/outer", **outer}))


def test_what_stands_beside_a_reference_of_old_does_not_count() -> None:
    schema = EXCLUSIVE["a reference and more"]
    old = {"$schema": "http://json-schema.org/draft-07/schema#", **schema}
    assert Draft202012Validator(schema).is_valid({"kind": 1})
    assert not Draft7Validator({**old, "definitions": schema["$defs"]}).is_valid({"kind": 1})
    assert '"oneOf"' in lean(json.dumps(old))


def test_a_denied_schema_that_conflicts_anyway_is_left_out() -> None:
    assert json.loads(lean(json.dumps({"type": "string", "not": {"type": "null"}}))) == TEXT
    assert json.loads(lean(json.dumps({"enum": [1, 2], "not": {"const": 3}}))) == {"enum": [1, 2]}
    kept = json.dumps({"type": "string", "not": {"const": ""}})
    assert lean(kept) == kept


@pytest.mark.parametrize("denied", [{}, True, {"description": "never"}])
def test_what_denies_everything_allows_nothing(denied: Any) -> None:
    assert json.loads(lean(json.dumps({"anyOf": [{"not": denied}, TEXT]}))) == {
        "anyOf": [{"enum": []}, TEXT]
    }


FREE: list[Any] = [{"anyOf": [{}, {}]}] * 13
HOSTILE: dict[str, dict[str, Any]] = {
    "many branches": {"oneOf": [record(n % 997) for n in range(600)]},
    "long lists": {"oneOf": [{"enum": [*range(n, 5000)]} for n in range(0, 60, 20)] * 20},
    "large values": {"oneOf": [{"const": [[n] * 20_000]} for n in range(2)] * 30},
    # Those that decide stand in the middle, and are come to last.
    "alternatives of alternatives": {
        "oneOf": [{"allOf": [*FREE, {"anyOf": [{"const": 1}, {"const": 2}]}, *FREE]}, {"const": 3}]
    },
    "needed names": {
        "oneOf": [{"type": "object", "required": [*map(str, range(9000))]} for _ in range(9)]
    },
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_proof_that_would_take_long_is_given_up(name: str) -> None:
    """Without a bound each takes minutes and more."""
    source = json.dumps(HOSTILE[name])
    assert lean(source) == source


# Every value over few names and scalars.
SCALARS = [None, True, False, 0, 1, 1.5, "a", "b"]
UNIVERSE: list[Any] = [
    *SCALARS,
    [],
    *([scalar] for scalar in SCALARS),
    {},
    *({"kind": scalar} for scalar in [*SCALARS, {}, {"kind": 1}, {"kind": "a"}]),
    *({"other": scalar} for scalar in SCALARS),
    *({"kind": one, "other": other} for one, other in product(SCALARS, SCALARS)),
]


def random_schema(choice: random.Random, depth: int = 3) -> Any:
    """Returns a schema over the names and scalars of UNIVERSE; its references lead to A and B."""
    if depth == 0 or choice.random() < 0.05:
        listed = {"enum": choice.sample(SCALARS, choice.randint(1, 3))}
        return choice.choice([True, False, {}, TEXT, {"type": "integer"}, listed, listed])
    schema: dict[str, Any] = {}
    if choice.random() < 0.5:
        schema = record(random_schema(choice, 0), required=[choice.choice(["kind", "other"])])
    for keyword, chance in {
        "type": 0.2,
        "const": 0.1,
        "enum": 0.1,
        "properties": 0.2,
        "required": 0.2,
        "minimum": 0.1,
        "exclusiveMinimum": 0.1,
        "maximum": 0.1,
        "exclusiveMaximum": 0.1,
        "maxLength": 0.05,
        "minItems": 0.05,
        "maxProperties": 0.05,
        "additionalProperties": 0.1,
        "patternProperties": 0.05,
        "allOf": 0.1,
        "anyOf": 0.15,
        "oneOf": 0.1,
        "not": 0.05,
        "$ref": 0.15,
    }.items():
        if choice.random() < chance:
            schema[keyword] = random_value(keyword, choice, depth)
    return schema


def random_value(keyword: str, choice: random.Random, depth: int) -> Any:
    """Returns what a keyword may have."""
    types = ["null", "boolean", "integer", "number", "string", "array", "object", "object"]
    match keyword:
        case "type":
            return choice.choice([*types, choice.sample(types[:7], 2)])
        case "const":
            return choice.choice(UNIVERSE)
        case "enum":
            return choice.sample(UNIVERSE[:12], choice.randint(1, 4))
        case "minimum" | "exclusiveMinimum" | "maximum" | "exclusiveMaximum":
            return choice.choice([0, 0.5, 1, 1.5, 2])
        case "maxLength" | "minItems" | "maxProperties":
            return choice.randint(0, 2)
        case "required":
            return choice.sample(["kind", "other"], choice.randint(1, 2))
        case "properties":
            return {name: random_schema(choice, depth - 1) for name in ("kind", "other")}
        case "patternProperties":
            return {"^k": random_schema(choice, depth - 1)}
        case "allOf" | "anyOf" | "oneOf":
            return [random_schema(choice, depth - 1) for _ in range(choice.randint(1, 3))]
        case "$ref":
            return choice.choice(["#/$defs/A", "#/$defs/B"])
        case _:
            return random_schema(choice, depth - 1)


def test_no_value_fits_two_schemas_that_are_proven_to_exclude_each_other() -> None:
    choice = random.Random(1)
    proven_count = 0
    for _ in range(600):
        # Definitions refer to nothing: of circles the validator finds no end.
        root: dict[str, Any] = {"$defs": {name: random_schema(choice, 0) for name in "AB"}}
        given = random_schema(choice, choice.choice([0, 0, 0, 1]))
        given = given if isinstance(given, dict) else {}
        branches = [random_schema(choice) for _ in range(2)]
        if Conflicts(root).exclude_each_other(branches, given):
            assert values_of({**root, "allOf": [given, *branches]}) == []
            proven_count += all(values_of({**root, "allOf": [given, each]}) for each in branches)
    assert proven_count >= 15


def values_of(schema: dict[str, Any]) -> list[Any]:
    """Returns the values that fit a schema."""
    return [*filter(Draft202012Validator(schema).is_valid, UNIVERSE)]
