"""JSON Schemas and llguidance: what asks for nothing is left out, and what it refuses explained."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from llm_service.engines.conflicts import MAX_STEP_COUNT, TYPES, Conflicts
from protos.json_schema import MAX_DEPTH, Place, Schema, has_unknown_format, subschemas

MAX_PLACE_LENGTH = 200
# What says something to people and programs, and nothing of the values.
NOTES = frozenset(
    {
        *("$comment", "default", "deprecated", "description", "discriminator", "example"),
        *("examples", "externalDocs", "nullable", "readOnly", "title", "writeOnly", "xml"),
    }
)
DIALECT = re.compile(r"https?://json-schema\.org/draft[-/]")
# llguidance makes no expression for what is beyond. It reads larger bounds of whole numbers as
# those of 64 bits, of which it does not take the least one.
MAX_LENGTH = 2**32 - 1
MAX_BOUND = 1e18
LEAST_INTEGER = -(2**63) + 1024
# Look-around, references to groups, control characters: not in Rust's expressions.
UNREAD_PATTERN = re.compile(r"\(\?<?[=!]|\\[1-9]|\\k<|\\c[A-Za-z]")
# What to do without a keyword that llguidance does not enforce.
ADVICE = {
    "$dynamicRef": "use $ref",
    "$recursiveRef": "use $ref",
    "contains": "say with items what each item is",
    "dependencies": "use anyOf, with a branch for each case",
    "dependentRequired": "use anyOf, with a branch for each case",
    "dependentSchemas": "use anyOf, with a branch for each case",
    "else": "use anyOf, with a branch for each case",
    "if": "use anyOf, with a branch for each case",
    "maxContains": "say with items what each item is",
    "minContains": "say with items what each item is",
    "not": "say with enum, pattern or anyOf what is allowed instead",
    "propertyNames": "use patternProperties, and additionalProperties false",
    "then": "use anyOf, with a branch for each case",
    "unevaluatedItems": "use items beside prefixItems",
    "unevaluatedProperties": "use additionalProperties",
    "uniqueItems": "leave it out, and ask for it in the prompt",
}
# What pydantic writes of a Decimal, and zod of an email(), with look-around: the same without.
SAME_PATTERNS = {
    r"^(?!^[-+.]*$)[+-]?0*\d*\.?\d*$": r"^[+-]?(\d+\.?\d*|\.\d+)$",
    r"^(?!\.)(?!.*\.\.)([A-Za-z0-9_'+\-\.]*)[A-Za-z0-9_+-]"
    r"@([A-Za-z0-9][A-Za-z0-9\-]*\.)+[A-Za-z]{2,}$": (
        r"^([A-Za-z0-9_'+-]+\.)*[A-Za-z0-9_'+-]*[A-Za-z0-9_+-]"
        r"@([A-Za-z0-9][A-Za-z0-9-]*\.)+[A-Za-z]{2,}$"
    ),
}
TYPE_NAMES = "array, boolean, integer, null, number, object and string"
UNIMPLEMENTED = "Unimplemented keys: "
REGEX_ERROR = "regex parse error:"
LOOK_AROUND = "look-around, (?= (?! (?<= or (?<!, cannot be followed; write it without"


@dataclass(frozen=True)
class Fault:
    """Why a guide cannot be followed.

    Attributes:
        reason: the end of a sentence.
        place: where in a JSON Schema, as the end of a JSON path; empty where that is not known.
    """

    reason: str
    place: str = ""


@dataclass(frozen=True)
class Explanation:
    """A message of llguidance's, and ours; {0} is the first group of the former's pattern.

    Attributes:
        message: a pattern of the whole of llguidance's first line.
        sentence: what we say.
        keyword: what it is about; empty: no keyword of its own.
        value: what the keyword has there, as text or as JSON; empty: whatever.
    """

    message: str
    sentence: str
    keyword: str = ""
    value: str = ""


EXPLANATIONS = (
    Explanation(
        "oneOf (constraints are not|not fully) supported.*",
        "'oneOf' needs branches that exclude each other, e.g. by a const in each; use anyOf",
        "oneOf",
    ),
    Explanation(
        "Pointer '(.*)' does not exist", "'$ref' leads to #{0}, where nothing is", "$ref", "#{0}"
    ),
    Explanation(
        "Resource '(.*)' is not present.*",
        "'$ref' leads to {0}, and schemas are not fetched; put it below $defs",
        "$ref",
        "{0}",
    ),
    Explanation(
        "circular references with sibling keys are not supported.*",
        "a '$ref' that leads back to itself must have nothing beside it",
    ),
    Explanation("Invalid type: (.*)", f"'{{0}}' is no type; there are {TYPE_NAMES}", "type", "{0}"),
    Explanation(
        "Unsatisfiable schema: (anyOf|oneOf) is empty",
        "no JSON fits it: an enum, anyOf, oneOf or type has no entries",
    ),
    Explanation(
        "Unsatisfiable schema: incompatible types",
        "no JSON fits it: a value would have to be of two types",
    ),
    Explanation(
        "Unsatisfiable schema: Regex is empty.*",
        "no JSON fits it: a string's pattern, format and length exclude each other",
    ),
    Explanation("Unsatisfiable schema: (.*)", "no JSON fits it: {0}"),
    Explanation("Expected f64 for '(.*)', got (.*)", "'{0}' must be a number", "{0}", "{1}"),
    Explanation(
        "Expected positive integer for '(.*)', got (.*)",
        "'{0}' must be a whole number from 0 on, without a point",
        "{0}",
        "{1}",
    ),
    Explanation("Expected array for '(.*)', got (.*)", "'{0}' must be a list", "{0}", "{1}"),
    Explanation("Expected object for '(.*)', got (.*)", "'{0}' must be an object", "{0}", "{1}"),
    Explanation("Expected string for '(.*)', got (.*)", "'{0}' must be a string", "{0}", "{1}"),
    Explanation(
        "schema must be an object or boolean", "each schema in it must be an object, true or false"
    ),
    Explanation("Expecting object schema to apply options", "it must be an object"),
    Explanation(
        "Failed to generate regex for (float|integer) range.*",
        "its 'minimum' or 'maximum' is too large to be enforced; leave it out",
    ),
    Explanation("recursion limit exceeded.*", f"it is more than {MAX_DEPTH - 1} levels deep"),
)


def lean(source: str, document_count: int = 1) -> str:
    """Returns a JSON Schema that means the same in keywords that llguidance enforces, if it can.

    What asks for nothing is left out, for llguidance refuses some keywords without a look at what
    they ask for. It is as it was where there is none, and where it is no schema: llguidance says
    what is wrong with it. So many documents have one document's time for proofs.
    """
    return _rewritten(source, document_count, _drop_idle, _spell_otherwise)


def relaxed(source: str, document_count: int = 1) -> str:
    """Returns a JSON Schema without what llguidance does not enforce, otherwise as `lean`.

    That comes first: of a schema that is denied, what is left would deny more.
    """
    return _rewritten(lean(source, document_count), document_count, _loosen)


def _rewritten(
    source: str, document_count: int, *changes: Callable[[Schema, Conflicts], bool]
) -> str:
    """Returns a schema with its schemas changed, inner ones first; a change says whether it was."""
    try:
        root = json.loads(source)
        schemas = [schema for _, schema in subschemas(root)]
        conflicts = Conflicts(root, MAX_STEP_COUNT // document_count)
        changed = [change(schema, conflicts) for schema in reversed(schemas) for change in changes]
        return json.dumps(root, allow_nan=False) if any(changed) else source
    except (AttributeError, TypeError, ValueError, RecursionError):
        return source


def _drop_idle(schema: Schema, _: Conflicts) -> bool:
    """Takes keywords that ask for nothing out of one schema, and says whether there were any."""
    idle = [name for name, value in schema.items() if value is None and name != "const"]
    if "$ref" in schema:  # beside one that is circular llguidance takes only those that it knows
        idle += [name for name in schema if _is_note(name)]
    idle += [name for name in IDLE.keys() & schema.keys() - {*idle} if IDLE[name](schema)]
    for name in {*idle}:
        del schema[name]
    return bool(idle)


def _spell_otherwise(schema: Schema, conflicts: Conflicts) -> bool:
    """Says in other keywords what llguidance does not take in these, and whether it did."""
    before = dict(schema)
    if "not" in schema:
        denied = schema.pop("not")
        if _is_any(denied):
            schema["enum"] = []
        elif not conflicts.exclude_each_other([schema, denied], {}):
            schema["not"] = denied
    if "oneOf" in schema and "anyOf" not in schema:
        given = {name: value for name, value in schema.items() if name != "oneOf"}
        if conflicts.exclude_each_other(schema["oneOf"], given):
            schema["anyOf"] = schema.pop("oneOf")
    if schema.get("pattern") in SAME_PATTERNS:
        schema["pattern"] = SAME_PATTERNS[schema["pattern"]]
    if schema.get("type") == "integer" and _number(schema, "minimum") < LEAST_INTEGER:
        schema["minimum"] = LEAST_INTEGER
    return schema != before


def _loosen(schema: Schema, _: Conflicts) -> bool:
    """Takes out of one schema what is not enforced, and says whether there was any."""
    names = [name for name in schema if name in ADVICE or name in LOOSE and LOOSE[name](schema)]
    dropped = {name: schema.pop(name) for name in names}
    if "oneOf" in dropped:
        schema["allOf"] = [*schema.get("allOf", []), {"anyOf": dropped["oneOf"]}]
    patterns = schema.get("patternProperties", {})
    if unread := [pattern for pattern in patterns if UNREAD_PATTERN.search(pattern)]:
        others = {name: patterns[name] for name in patterns if name not in unread}
        schema |= {"patternProperties": others, "additionalProperties": True}
    return bool(names or unread)


def _is_note(name: str) -> bool:
    return name in NOTES or name.startswith("x-")


def _is_any(schema: object) -> bool:
    return schema is True or (isinstance(schema, dict) and all(map(_is_note, schema)))


def _all_any(name: str) -> Callable[[Schema], bool]:
    """Returns a test for keywords that hold lists of names, or schemas, by names."""

    def check(schema: Schema) -> bool:
        entries = schema[name]
        return isinstance(entries, dict) and all(
            each == [] or _is_any(each) for each in entries.values()
        )

    return check


def _contains_nothing(schema: Schema) -> bool:
    least_is_none = schema.get("minContains") == 0 and "maxContains" not in schema
    return "contains" not in schema or least_is_none


def _has_no_condition(schema: Schema) -> bool:
    return "if" not in schema or all(_is_any(schema.get(name, True)) for name in ("then", "else"))


def _fits_any_name(schema: object) -> bool:
    """Whether a schema says of a name no more than that it is one: z.record() writes that."""
    facts = (("type", "string"), ("minLength", 0))
    is_fact = isinstance(schema, dict) and all(
        _is_note(name) or (name, value) in facts for name, value in schema.items()
    )
    return schema is True or is_fact


def _is_of_unknown_dialect(schema: Schema) -> bool:
    """Whether a schema is of a dialect that is not JSON Schema's own: OpenAPI's has more notes."""
    name = schema["$schema"]
    return isinstance(name, str) and not DIALECT.match(name)


def _number(schema: Schema, name: str) -> float:
    """Returns a number of a schema's, 0 where it has something else there."""
    value = schema.get(name)
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else 0


def _is_refused_pattern(schema: Schema) -> bool:
    return UNREAD_PATTERN.search(schema["pattern"]) is not None


def _has_unknown_type(schema: Schema) -> bool:
    names = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    return any(name not in TYPES for name in names)


def _is_huge(name: str) -> Callable[[Schema], bool]:
    return lambda schema: abs(_number(schema, name)) > MAX_BOUND


IDLE: dict[str, Callable[[Schema], bool]] = {
    "$dynamicAnchor": lambda schema: True,  # a $dynamicRef is refused itself
    "$recursiveAnchor": lambda schema: True,
    "$schema": _is_of_unknown_dialect,
    "contains": _contains_nothing,
    "dependencies": _all_any("dependencies"),
    "dependentRequired": _all_any("dependentRequired"),
    "dependentSchemas": _all_any("dependentSchemas"),
    "else": _has_no_condition,
    "format": has_unknown_format,
    "if": _has_no_condition,
    "maxContains": _contains_nothing,
    "maxLength": lambda schema: _number(schema, "maxLength") > MAX_LENGTH,
    "maximum": lambda schema: _number(schema, "maximum") >= sys.float_info.max,
    "minContains": _contains_nothing,
    "minimum": lambda schema: _number(schema, "minimum") <= -sys.float_info.max,
    "not": lambda schema: schema["not"] is False,
    "propertyNames": lambda schema: _fits_any_name(schema["propertyNames"]),
    "then": _has_no_condition,
    "unevaluatedItems": lambda schema: (
        _is_any(schema["unevaluatedItems"]) or isinstance(schema.get("items"), (bool, dict))
    ),
    "unevaluatedProperties": lambda schema: (
        _is_any(schema["unevaluatedProperties"]) or "additionalProperties" in schema
    ),
    "uniqueItems": lambda schema: (
        schema["uniqueItems"] is False or schema.get("maxItems") in (0, 1)
    ),
}
# What is not enforced of keywords that otherwise are.
LOOSE: dict[str, Callable[[Schema], bool]] = {
    "$ref": lambda schema: not schema["$ref"].startswith("#"),
    "exclusiveMaximum": _is_huge("exclusiveMaximum"),
    "exclusiveMinimum": _is_huge("exclusiveMinimum"),
    "maximum": _is_huge("maximum"),
    "minimum": _is_huge("minimum"),
    "oneOf": lambda schema: True,
    "pattern": _is_refused_pattern,
    "type": _has_unknown_type,
}


def explained(message: str, source: str) -> Fault:
    """Returns llguidance's message about a JSON Schema in our words, with its place."""
    line = message.split("\n", 1)[0]
    if line.startswith(UNIMPLEMENTED):
        return _unimplemented(line, source)
    if line.startswith(REGEX_ERROR):
        return _bad_pattern(message, source)
    for each in EXPLANATIONS:
        if found := re.fullmatch(each.message, line, re.DOTALL):
            groups = found.groups()
            place = _lone_place(source, each.keyword.format(*groups), each.value.format(*groups))
            return Fault(each.sentence.format(*groups), place)
    return Fault(line)


def pattern_complaint(message: str) -> str:
    """Returns what llguidance finds wrong with a regular expression, which it repeats first."""
    reason = message.rpartition("error: ")[2].split("\n", 1)[0]
    return LOOK_AROUND if "look-around" in reason else reason


def _bad_pattern(message: str, source: str) -> Fault:
    pattern = message.partition("\n")[2].split("\n", 1)[0].removeprefix("    ")
    place = _lone_place(source, "pattern", pattern)
    return Fault(f"a pattern is refused: {pattern_complaint(message)}", place)


def _unimplemented(line: str, source: str) -> Fault:
    names = re.findall('"([^"]+)"', line) or ["a keyword"]
    name = next((name for name in names if name in ADVICE), names[0])
    places = _places(source, name)
    sentence = f"'{name}' cannot be enforced; {ADVICE.get(name, 'leave it out')}"
    return Fault(sentence, places[0] if places else "")


def _lone_place(source: str, keyword: str, value: str) -> str:
    places = _places(source, keyword, value)
    return places[0] if len(places) == 1 else ""


def _places(source: str, keyword: str, value: str = "") -> list[str]:
    """Returns where a keyword stands, e.g. ".items.type"; with a value only where it has this."""
    try:
        return [
            _written((*place, keyword))
            for place, schema in _used_schemas(json.loads(source))
            if keyword in schema and (not value or _is_written_as(schema[keyword], value))
        ]
    except (AttributeError, ValueError, RecursionError):
        return []


def _used_schemas(root: Schema) -> Iterator[tuple[Place, Schema]]:
    """Leaves out definitions that no $ref names, for llguidance does not look at them."""
    schemas = list(subschemas(root))
    references = {schema.get("$ref") for _, schema in schemas if type(schema.get("$ref")) is str}
    for place, schema in schemas:
        is_definition = place[:1] in (("$defs",), ("definitions",))
        if not is_definition or "#/" + "/".join(map(str, place[:2])) in references:
            yield place, schema


def _is_written_as(value: Any, text: str) -> bool:
    is_among = isinstance(value, list) and text in value
    return is_among or text in (value, json.dumps(value, separators=(",", ":")))


def _written(place: Place) -> str:
    """Returns a place as the end of a JSON path, whole or its first steps."""
    steps = ""
    for step in place:
        name = str(step)
        is_plain = isinstance(step, str) and re.fullmatch(r"[A-Za-z_$][A-Za-z0-9_$-]*", name)
        steps += f".{name}" if is_plain else f"[{json.dumps(step)}]"
        if len(steps) > MAX_PLACE_LENGTH:
            return steps[:MAX_PLACE_LENGTH]
    return steps
