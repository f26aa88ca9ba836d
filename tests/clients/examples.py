"""Values that fit a JSON Schema, made of the words and numbers of a question."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import chain, repeat
from typing import Any

QUOTED = re.compile(r"(?<!\w)['\"](.+?)['\"](?!\w)")
# Names that stand after the question's first word.
CAPITALISED = re.compile(r"(?<=\w )[A-Z]\w+(?: [A-Z]\w+)*")
DIGITS = re.compile(r"\d+")


class Examples:
    """Fills in schemas: numbers, quoted words and names are taken in the question's order."""

    def __init__(self, question: str) -> None:
        self._words: Iterator[str] = chain(
            QUOTED.findall(question), CAPITALISED.findall(question), repeat(question)
        )
        self._numbers: Iterator[int] = chain(map(int, DIGITS.findall(question)), repeat(1))

    def of_schema(self, text: str) -> str:
        """Returns JSON text that fits the schema of this JSON text; without one, an object."""
        schema: dict[str, Any] = json.loads(text or '{"type": "object"}')
        self._definitions = schema.get("$defs", {})
        return json.dumps(self._value(schema), ensure_ascii=False)

    def _value(self, schema: dict[str, Any]) -> Any:
        if name := schema.get("$ref"):
            return self._value(self._definitions[name.rpartition("/")[2]])
        if "const" in schema:
            return schema["const"]
        if "enum" in schema:
            return schema["enum"][0]
        for key in ("anyOf", "oneOf", "allOf"):
            if key in schema:
                return self._value(schema[key][0])
        return self._of_type(schema)

    def _of_type(self, schema: dict[str, Any]) -> Any:
        kind = schema.get("type", "string")
        match kind[0] if isinstance(kind, list) else kind:
            case "object":
                return {
                    name: self._value(one) for name, one in schema.get("properties", {}).items()
                }
            case "array":
                return [self._value(schema.get("items", {}))]
            case "integer" | "number":
                return next(self._numbers)
            case "boolean":
                return True
            case "null":
                return None
        return next(self._words)
