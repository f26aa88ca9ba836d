"""JSON Schemas as clients' libraries write them, and what is said of those that are refused."""

from __future__ import annotations

import datetime
import enum
import ipaddress
import json
import pathlib
import random
import re
import uuid
from typing import Annotated, Any, Literal

import pytest
from llguidance import LLMatcher
from pydantic import AnyUrl, BaseModel, Field, SecretStr

from llm_service.engines import guide_trial
from llm_service.engines.grammars import JSON_OPTIONS, guide_grammar
from llm_service.engines.schemas import SAME_PATTERNS, Fault, explained, lean, relaxed
from llm_service.sampling import Guide
from protos.json_schema import FORMATS

TEXT = {"type": "string"}


def fault(schema: Any) -> Fault | None:
    """Returns what is wrong with a schema, as llguidance sees it and we say it."""
    guide = Guide("json_schema", json.dumps(schema))
    try:
        reason = guide_trial.refusal(guide_grammar(guide))
    except ValueError as error:
        reason = str(error)
    return explained(reason, guide.source) if reason else None


IDLE: list[dict[str, Any]] = [
    {"uniqueItems": False},
    {"format": "password"},
    {"format": "made-up"},
    {"type": "integer", "format": "int64"},
    {"patternProperties": {}},
    {"dependentRequired": {}},
    {"dependentRequired": {"a": []}},
    {"dependentSchemas": {"a": True}},
    {"dependencies": {"a": [], "b": {}}},
    {"propertyNames": {}},
    {"unevaluatedProperties": True},
    {"unevaluatedItems": {}},
    {"contains": {"const": 1}, "minContains": 0},
    {"minContains": 3, "maxContains": 5},
    {"if": {"const": 1}},
    {"if": {"const": 1}, "then": {}, "else": True},
    {"then": {"const": 1}, "else": False},
    {"not": False},
    {"minLength": None, "pattern": None, "enum": None, "$ref": None, "items": None, "anyOf": None},
    # As zod writes a record's names.
    {"propertyNames": {"type": "string"}},
    {"propertyNames": {"minLength": 0, "title": "Name"}},
    {"then": {"description": "x"}, "if": {"const": 1}},
    # In OpenAPI's documents, and in editors' files.
    {"$schema": "https://spec.openapis.org/oas/3.1/dialect/base"},
    {"$schema": "http://json-schema.org/schema#"},
    {"$dynamicAnchor": "node"},
    {"$recursiveAnchor": True},
    # The largest numbers of .NET and Java.
    {"minimum": -1.7976931348623157e308, "maximum": 1.7976931348623157e308},
    {"maxLength": 9223372036854775807},
]
# Those that ask for nothing beside what they stand by.
IDLE_BESIDE: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"type": "array", "maxItems": 1}, {"uniqueItems": True}),
    ({"type": "array", "items": TEXT}, {"unevaluatedItems": False}),
    ({"type": "array", "items": False, "prefixItems": [TEXT]}, {"unevaluatedItems": False}),
    ({"type": "object", "additionalProperties": False}, {"unevaluatedProperties": False}),
    (TEXT, {"not": {"type": "null"}}),
]


@pytest.mark.parametrize(("schema", "keywords"), IDLE_BESIDE, ids=json.dumps)
def test_keywords_that_ask_for_nothing_more_are_left_out(
    schema: dict[str, Any], keywords: dict[str, Any]
) -> None:
    assert json.loads(lean(json.dumps(schema | keywords))) == schema
    assert fault(schema | keywords) is None


# What a converter from .NET, Java, Go, pydantic or zod writes beside a reference.
BESIDE_REFERENCES: list[dict[str, Any]] = [
    {"nullable": True},
    {"deprecated": True},
    {"discriminator": {"propertyName": "kind"}},
    {"x-order": 3},
    {"description": "x", "default": None, "readOnly": True, "xml": {}},
]


@pytest.mark.parametrize("notes", BESIDE_REFERENCES, ids=json.dumps)
def test_notes_beside_a_circular_reference_pass(notes: dict[str, Any]) -> None:
    node = {"type": "object", "properties": {"child": {"$ref": "#/$defs/node", **notes}}}
    assert fault({"$ref": "#/$defs/node", "$defs": {"node": node}, **notes}) is None


def test_the_least_whole_numbers_are_not_written() -> None:
    """llguidance makes no expression for the least one of 64 bits."""
    schema = {"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1}
    assert fault(schema) is None
    assert json.loads(lean(json.dumps(schema)))["minimum"] == -(2**63) + 1024


DECIMAL, EMAIL = SAME_PATTERNS


@pytest.mark.parametrize(
    ("pattern", "letters", "examples"),
    [
        (DECIMAL, "0019.+-", ["1", "+0.5", "-.5", "10.", "007.10"]),
        (EMAIL, "aZ0_'+-.@", ["a@b.cd", "a'b.c+d@e-f.g.hi", "_@0.ab"]),
    ],
)
def test_patterns_that_look_around_are_written_without(
    pattern: str, letters: str, examples: list[str]
) -> None:
    same = json.loads(lean(json.dumps(TEXT | {"pattern": pattern})))["pattern"]
    assert fault(TEXT | {"pattern": pattern}) is None
    assert fault(TEXT | {"pattern": pattern, "format": "email"}) is None or pattern == DECIMAL
    choice = random.Random(5)
    texts = ["".join(choice.choices(letters, k=choice.randint(0, 6))) for _ in range(20_000)]
    # Near to those that fit, by one letter more, less or other.
    for example in examples * 500:
        place = choice.randrange(len(example) + 1)
        rest = example[place + choice.randint(0, 1) :]
        texts.append(example[:place] + choice.choice(["", *letters]) + rest)
    found = [text for text in {*texts, *examples} if re.search(pattern, text)]
    assert found == [text for text in {*texts, *examples} if re.search(same, text)]
    assert {*examples} < {*found} < {*texts, *examples}


# As zod (z.undefined(), z.never()), and so what MCP servers tell of their tools.
IMPOSSIBLE: list[dict[str, Any]] = [
    {"anyOf": [{"not": {}}, TEXT]},
    {"type": "object", "properties": {"gone": {"not": {}}}, "additionalProperties": {"not": {}}},
]


@pytest.mark.parametrize("schema", IMPOSSIBLE, ids=json.dumps)
def test_what_can_never_be_is_another_way_to_say_false(schema: dict[str, Any]) -> None:
    assert fault(schema) is None


# Each is refused as it is.
UNENFORCED: dict[str, Any] = {
    "$dynamicRef": "#node",
    "$ref": "https://example.com/schema",
    "contains": {"const": 1},
    "dependentRequired": {"a": ["b"]},
    "dependentSchemas": {"a": {"required": ["b"]}},
    "exclusiveMinimum": -1e30,
    "if": {"required": ["a"]},
    "maximum": 1e30,
    "not": {"const": "a"},
    "oneOf": [{"type": "number"}, {"type": "integer"}],
    "pattern": "^(?!x)a",
    "patternProperties": {"^(?=a)": {"type": "integer"}, "^b": {"type": "integer"}},
    "propertyNames": {"pattern": "^a"},
    "type": "any",
    "unevaluatedItems": False,
    "unevaluatedProperties": False,
    "uniqueItems": True,
}
BESIDE: dict[str, dict[str, Any]] = {
    "if": {"then": {"required": ["b"]}},
    "maximum": {"type": "number"},
}
BESIDE["exclusiveMinimum"] = {"type": "number"}


@pytest.mark.parametrize("name", UNENFORCED)
def test_a_relaxed_schema_lacks_what_is_not_enforced(name: str) -> None:
    schema = {name: UNENFORCED[name], **BESIDE.get(name, {})}
    assert fault(schema) is not None
    nested = {"type": "object", "properties": {"a": schema, "b": TEXT}, "required": ["b"]}
    left = json.loads(relaxed(json.dumps(nested)))
    assert fault(left) is None
    assert (left["properties"]["b"], left["required"]) == (TEXT, ["b"])
    assert relaxed(json.dumps(left)) == json.dumps(left)


@pytest.mark.parametrize(
    "denied", [{"not": TEXT}, {"pattern": "^(?!a)"}, {"uniqueItems": True}, {"contains": TEXT}]
)
def test_what_a_denied_schema_lacks_is_not_denied(denied: dict[str, Any]) -> None:
    source = json.dumps({"properties": {"a": {"not": denied}}})
    assert json.loads(relaxed(source)) == {"properties": {"a": {}}}


def test_a_relaxed_schema_asks_for_no_more() -> None:
    """What is left of alternatives and patterns still allows all that the whole ones do."""
    assert json.loads(
        relaxed(json.dumps({"oneOf": [{}, TEXT], "allOf": [TEXT], "anyOf": [{}]}))
    ) == {
        "allOf": [TEXT, {"anyOf": [{}, TEXT]}],
        "anyOf": [{}],
    }
    patterns = {"patternProperties": {"^(?=a)": TEXT, "^b": TEXT}, "additionalProperties": False}
    assert json.loads(relaxed(json.dumps(patterns))) == {
        "patternProperties": {"^b": TEXT},
        "additionalProperties": True,
    }


@pytest.mark.parametrize("source", ["", "[1]", '{"oneOf": 1, "allOf": 2}', '{"pattern": 1}'])
def test_what_cannot_be_relaxed_is_left_to_llguidance(source: str) -> None:
    assert relaxed(source) == source


@pytest.mark.parametrize("keywords", IDLE, ids=json.dumps)
def test_keywords_that_ask_for_nothing_are_left_out(keywords: dict[str, Any]) -> None:
    kept = {"type": "integer"} if "type" in keywords else {}
    if "patternProperties" not in keywords:  # llguidance sees itself that this is empty
        assert json.loads(lean(json.dumps(keywords))) == kept
    nested = {"type": "object", "properties": {"a": {"anyOf": [TEXT, keywords]}}}
    assert fault(nested) is None
    assert fault({"$defs": {"a": keywords}, "$ref": "#/$defs/a"}) is None


NOTES = {
    "$comment": "x",
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "$id": "https://example.com/s",
    "contentEncoding": "base64",
    "contentMediaType": "image/png",
    "default": "a",
    "deprecated": True,
    "description": "x",
    "discriminator": {"propertyName": "a"},
    "example": "a",
    "examples": ["a"],
    "readOnly": True,
    "title": "x",
    "writeOnly": True,
    "x-order": 3,
}


@pytest.mark.parametrize("name", NOTES)
def test_notes_pass(name: str) -> None:
    assert fault(TEXT | {name: NOTES[name]}) is None


@pytest.mark.parametrize(
    "schema",
    [
        {"const": {"uniqueItems": False, "format": "x", "not": None}},
        {"enum": [{"uniqueItems": False}, None]},
        {"const": None},
        {"properties": {"uniqueItems": {"const": False}, "format": {"const": "x"}}},
        {"uniqueItems": True, "not": TEXT, "format": "uuid"},
        {"patternProperties": {"^not$": {}}, "propertyNames": {"pattern": "n"}},
    ],
)
def test_what_asks_for_something_stays_as_it_is_written(schema: dict[str, Any]) -> None:
    source = json.dumps(schema, indent=1)
    assert lean(source) == source


@pytest.mark.parametrize("source", ["", "{", "[1]", "null", "[" * 99_999, '{"a": NaN}', "1" * 9999])
def test_what_is_no_schema_is_left_to_llguidance(source: str) -> None:
    assert lean(source) == source


def test_properties_keep_their_order_and_numbers_their_value() -> None:
    numbers = '"properties": {"z": {"minimum": 0.1}, "a": {"maximum": 12345678901234567890}}'
    schema = f'{{{numbers}, "format": "x"}}'
    assert lean(schema) == schema.replace(', "format": "x"', "")


def test_the_formats_are_those_that_llguidance_enforces() -> None:
    others = {"idn-email", "uri-reference", "iri", "json-pointer", "regex", "binary", "uuid4"}
    for name in FORMATS | others:
        schema = {"type": "string", "format": name}
        grammar = LLMatcher.grammar_from_json_schema(schema, overrides=JSON_OPTIONS)
        assert bool(guide_trial.refusal(grammar)) == (name in others), name


class Mood(enum.Enum):
    """An enumeration."""

    GOOD = "good"
    BAD = "bad"


class Cat(BaseModel):
    """One branch of a union."""

    kind: Literal["cat"]
    lives: Annotated[int, Field(ge=1, le=9)]


class Dog(BaseModel):
    """The other branch."""

    kind: Literal["dog"]


class Everything(BaseModel):
    """What pydantic's users have in their models."""

    secret: SecretStr
    path: pathlib.Path
    data: bytes
    when: datetime.datetime
    day: datetime.date
    span: datetime.timedelta
    name: uuid.UUID
    link: AnyUrl
    address: ipaddress.IPv4Address
    network: ipaddress.IPv4Network
    mood: Mood | None = None
    pair: tuple[int, str] = (1, "a")
    counts: dict[str, int] = Field(default_factory=dict, deprecated=True)
    pet: Annotated[Cat | Dog, Field(discriminator="kind")]
    pets: list[Cat | Dog] = Field(min_length=1, examples=[[]])
    short: Annotated[str, Field(min_length=1, max_length=5, pattern="^[a-z]+$")]
    share: Annotated[float, Field(gt=0, lt=1, multiple_of=0.5)]
    child: Everything | None = None


def test_pydantics_schemas_pass() -> None:
    assert fault(Everything.model_json_schema()) is None


NESTED = {
    "type": "object",
    "properties": {"a b": {"type": "array", "items": {"$ref": "#/$defs/c"}}},
}


@pytest.mark.parametrize(
    ("schema", "reason", "place"),
    [
        ({"uniqueItems": True}, "'uniqueItems' cannot be enforced; leave it out", ".uniqueItems"),
        (
            {"anyOf": [TEXT, {"properties": {"a b": {"not": TEXT}}}]},
            "'not' cannot be enforced; say with enum",
            '.anyOf[1].properties["a b"].not',
        ),
        (NESTED | {"$defs": {"c": {"contains": {}}}}, "'contains' cannot", ".$defs.c.contains"),
        ({"if": TEXT, "then": {"minLength": 1}}, "'if' cannot be enforced; use anyOf", ".if"),
        ({"propertyNames": {"enum": ["a"]}}, "use patternProperties", ".propertyNames"),
        ({"dependentRequired": {"a": ["b"]}}, "use anyOf", ".dependentRequired"),
        ({"unevaluatedProperties": False}, "use additionalProperties", ".unevaluatedProperties"),
        (
            {"properties": {"n": {"oneOf": [{"type": "number"}, {"type": "integer"}]}}},
            "'oneOf' needs branches that exclude each other, e.g. by a const in each; use anyOf",
            ".properties.n.oneOf",
        ),
        ({"anyOf": [{"oneOf": [{}, {}]}, {"oneOf": [{}, {}]}]}, "'oneOf' needs branches", ""),
        ({"items": {"$ref": "#/$defs/no"}}, "leads to #/$defs/no, where nothing is", ".items.$ref"),
        ({"$ref": "http://x/y"}, "schemas are not fetched; put it below $defs", ".$ref"),
        ({"type": ["null", "strng"]}, "'strng' is no type; there are array", ".type"),
        ({"items": {"minimum": "1"}}, "'minimum' must be a number", ".items.minimum"),
        ({"required": "a"}, "'required' must be a list", ".required"),
        ({"pattern": "a(?=b)"}, "a pattern is refused: look-around, ", ".pattern"),
        ({"pattern": "("}, "a pattern is refused: unclosed group", ".pattern"),
        ({"enum": []}, "no JSON fits it: an enum, anyOf, oneOf or type has no entries", ""),
        ({"allOf": [TEXT, {"type": "null"}]}, "a value would have to be of two types", ""),
        ({"type": "integer", "minimum": 3, "maximum": 2}, "minimum (3) is greater than", ""),
        ({"type": "number", "maximum": 1e30}, "'minimum' or 'maximum' is too large", ""),
        ({"properties": {"a": 1}}, "each schema in it must be an object, true or false", ""),
    ],
)
def test_what_cannot_be_enforced_is_named_with_its_place(
    schema: dict[str, Any], reason: str, place: str
) -> None:
    found = fault(schema)
    assert found is not None
    assert reason in found.reason
    assert found.place == place
    assert "coerce" not in found.reason


def test_a_definition_that_is_not_used_is_not_blamed() -> None:
    schema = {"$defs": {"unused": {"not": TEXT}, "used": {"not": TEXT}}, "$ref": "#/$defs/used"}
    assert fault(schema) == Fault(
        "'not' cannot be enforced; say with enum, pattern or anyOf what is allowed instead",
        ".$defs.used.not",
    )


def test_a_place_is_not_longer_than_a_path_may_be() -> None:
    schema = {"properties": {"é" * 500: {"uniqueItems": True}}}
    found = fault(schema)
    assert found is not None
    assert len(found.place) == 200
    assert found.place.isascii()


def test_what_llguidance_says_beyond_our_table_is_passed_on() -> None:
    assert explained("Something new\nand more", "{}") == Fault("Something new")
    assert explained('Unimplemented keys: ["newKey"]', "{}") == Fault(
        "'newKey' cannot be enforced; leave it out"
    )


def test_documents_share_the_time_for_proofs() -> None:
    kinds = [{"kind": {"const": i}} for i in range(30)]
    branches = [{"type": "object", "properties": each, "required": ["kind"]} for each in kinds]
    source = json.dumps({"oneOf": branches})
    assert "anyOf" in json.loads(lean(source))
    assert json.loads(lean(source, 100)) == {"oneOf": branches}
