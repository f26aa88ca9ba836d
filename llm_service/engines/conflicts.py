"""JSON Schemas that exclude each other: proven where that is simple."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations
from typing import Any
from urllib.parse import unquote

from llm_service.engines.ranges import BOUNDS, has_room, only
from protos.json_schema import Schema, subschemas

# Each is a keyword or a value that is looked at: some 0.1 s for all.
MAX_STEP_COUNT = 200_000
# Of the properties of properties that are looked into.
MAX_LEVEL_COUNT = 32
# The types of JSON Schema, of which numbers have two.
KINDS = frozenset({"array", "boolean", "fraction", "integer", "null", "object", "string"})
TYPES = {kind: frozenset({kind}) for kind in KINDS - {"fraction"}}
TYPES["number"] = frozenset({"fraction", "integer"})
# Values as their kinds, and texts that equal ones have alike.
Values = frozenset[tuple[str, str]]


class _TooManyStepsError(Exception):
    """A proof would take too long."""


class Conflicts:
    """Looks for values that fit several schemas of one document, and for reasons why none can.

    What it does not know of a schema it takes as allowing anything, so that what it proves is so.
    """

    def __init__(self, root: Schema, max_step_count: int = MAX_STEP_COUNT) -> None:
        """Takes the document, whose keywords may change later but for what they mean.

        After `max_step_count` steps nothing is proven any more.
        """
        self._root = root
        # References are read from the nearest "$id" on; the outermost one changes nothing.
        self._has_bases = any("$id" in schema for place, schema in subschemas(root) if place)
        # What stands beside a reference counts since 2019.
        self._reads_siblings = "/draft-0" not in str(root.get("$schema"))
        self._targets: dict[str, Any] = {}
        # By keyword and the identity of what it has, which is kept, so that this stays its own.
        self._values: dict[tuple[str, int], tuple[Any, Values]] = {}
        self._steps_left = max_step_count

    def exclude_each_other(self, branches: Sequence[Any], given: Schema) -> bool:
        """Whether it is proven that no value which fits the given schema fits two branches."""
        try:
            return all(self._is_empty([given, *two], 0) for two in combinations(branches, 2))
        except _TooManyStepsError:
            return False

    def _is_empty(self, schemas: Iterable[Any], level: int) -> bool:
        """Whether it is proven that no value fits all of these."""
        if level > MAX_LEVEL_COUNT:
            return False
        parts = list(self._parts(schemas))
        if any(part is False for part in parts):
            return True
        parts = [part for part in parts if isinstance(part, dict)]
        named = KINDS.intersection(*map(_kinds, parts))
        kinds = frozenset(kind for kind in named if has_room(parts, kind))
        if not self._has_value(parts, kinds):
            return True
        if kinds == {"object"} and self._lacks_property(parts, level + 1):
            return True
        return self._has_no_branch(parts, level + 1)

    def _parts(self, schemas: Iterable[Any]) -> Iterator[Any]:
        """Yields schemas, what they refer to, and the members of their allOf."""
        waiting, references = list(schemas), set[str]()
        while waiting:
            schema = waiting.pop()
            if not isinstance(schema, dict):
                yield schema
                continue
            self._take_steps(1 + len(schema))
            reference = schema.get("$ref")
            if isinstance(reference, str) and reference not in references:
                references.add(reference)
                waiting.append(self._target(reference))
            if self._reads_siblings or reference is None:
                yield schema
                waiting.extend(_list(schema, "allOf"))

    def _target(self, reference: str) -> Any:
        """Returns what a reference leads to; True, which allows anything, where that is unknown."""
        if reference not in self._targets:
            self._targets[reference] = self._looked_up(reference)
        return self._targets[reference]

    def _looked_up(self, reference: str) -> Any:
        if self._has_bases or not (reference + "/").startswith("#/"):
            return True
        found: Any = self._root
        for step in unquote(reference).split("/")[1:]:
            name = step.replace("~1", "/").replace("~0", "~")
            if isinstance(found, list) and name.isdecimal():
                found = dict(enumerate(found)).get(int(name), True)
            else:
                found = found.get(name, True) if isinstance(found, dict) else True
        return found

    def _has_value(self, parts: Sequence[Schema], kinds: frozenset[str]) -> bool:
        """Whether a value may be of these kinds, in each const and enum, and within the bounds."""
        listed = [
            self._listed(name, part[name])
            for part in parts
            for name in ("const", "enum")
            if name in part
        ]
        if not listed:
            return bool(kinds)
        self._take_steps(sum(map(len, listed)))
        common = frozenset.intersection(*listed)
        bounded = [part for part in parts if BOUNDS & part.keys()]
        self._take_steps(len(common) * len(bounded))
        return any(
            kind in kinds
            and (not bounded or has_room([*bounded, only(kind, json.loads(text))], kind))
            for kind, text in common
        )

    def _listed(self, keyword: str, value: Any) -> Values:
        """Returns the values that an enum lists, or the one of a const."""
        key = keyword, id(value)
        if key not in self._values:
            entries = value if keyword == "enum" and isinstance(value, list) else [value]
            self._values[key] = value, frozenset(map(_kind_and_text, entries))
        return self._values[key][1]

    def _lacks_property(self, parts: Sequence[Schema], level: int) -> bool:
        """Whether an object needs a property that has no value."""
        required = [name for part in parts for name in _list(part, "required")]
        self._take_steps(len(required))
        return any(
            self._is_empty([_property(part, name) for part in parts], level)
            for name in required
            if isinstance(name, str)
        )

    def _has_no_branch(self, parts: Sequence[Schema], level: int) -> bool:
        """Whether all branches of the first anyOf or oneOf conflict with the rest."""
        for index, part in enumerate(parts):
            for name in ("anyOf", "oneOf"):
                if branches := _list(part, name):
                    rest = {key: value for key, value in part.items() if key != name}
                    others = [*parts[:index], rest, *parts[index + 1 :]]
                    return all(self._is_empty([*others, branch], level) for branch in branches)
        return False

    def _take_steps(self, count: int) -> None:
        self._steps_left -= count
        if self._steps_left < 0:
            raise _TooManyStepsError


def _list(schema: Schema, name: str) -> list[Any]:
    """Returns a list of a schema's; none where it has something else there."""
    value = schema.get(name)
    return value if isinstance(value, list) else []


def _kinds(schema: Schema) -> frozenset[str]:
    named = schema.get("type", [])
    names = named if isinstance(named, list) else [named]
    known = [TYPES.get(name, KINDS) for name in names if isinstance(name, str)]
    return frozenset().union(*known) if known else KINDS


def _kind_and_text(value: Any) -> tuple[str, str]:
    plain = _plain(value)
    return _kind(plain), json.dumps(plain, sort_keys=True)


def _kind(plain: Any) -> str:
    match plain:
        case bool():
            return "boolean"
        case int():
            return "integer"
        case float():
            return "fraction"
        case str():
            return "string"
        case list():
            return "array"
        case dict():
            return "object"
    return "null"


def _plain(value: Any) -> Any:
    """Returns a value with its whole numbers written without a point."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, list):
        return [_plain(entry) for entry in value]
    if isinstance(value, dict):
        return {name: _plain(entry) for name, entry in value.items()}
    return value


def _property(schema: Schema, name: str) -> Any:
    """Returns the schema of a property, or of others; True where it is not known which one."""
    properties = schema.get("properties", {})
    if not isinstance(properties, dict):
        return True
    if name in properties:
        return properties[name]
    return True if "patternProperties" in schema else schema.get("additionalProperties", True)
