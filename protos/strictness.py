"""Strict JSON Schemas: objects of these have the properties that are listed, and no others."""

from __future__ import annotations

from protos.json_schema import Schema, subschemas

# What says itself which other properties there may be.
OPENNESS = frozenset({"additionalProperties", "patternProperties", "unevaluatedProperties"})
# What may add properties to those of the schema beside it.
ADDITIONS = frozenset({"$ref", "allOf", "anyOf", "dependentSchemas", "else", "if", "oneOf", "then"})


def close(root: Schema) -> None:
    """Allows the objects of a schema no properties but those that it lists.

    OpenAI demands `additionalProperties: false` of each object in a strict schema; where that is
    left out, a weak model goes on with properties of its own. An object without properties stays
    open, for it may be meant to hold anything; so does one that demands others than those. So do
    all where schemas are combined, for there each one's properties are additional to the other.
    """
    schemas = [schema for _, schema in subschemas(root)]
    if not any(map(_combines, schemas)):
        for schema in filter(_is_open, schemas):
            schema["additionalProperties"] = False


def _is_open(schema: Schema) -> bool:
    properties = schema.get("properties")
    if not isinstance(properties, dict) or not properties or OPENNESS & schema.keys():
        return False
    required, least_count = schema.get("required"), schema.get("minProperties")
    demanded = required if isinstance(required, list) else []
    is_large = isinstance(least_count, int | float) and least_count > len(properties)
    return not is_large and all(name in properties for name in demanded if isinstance(name, str))


def _combines(schema: Schema) -> bool:
    several = schema.get("allOf")
    is_sum = isinstance(several, list) and len(several) > 1
    return is_sum or ("properties" in schema and bool(ADDITIONS & schema.keys()))
