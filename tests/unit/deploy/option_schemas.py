"""JSON schemas of the programs' options, for the chart's values; run as a program it writes them.

A program refuses variables that are no options: the chart knows them, so that a mistake is found
before anything is installed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from gateway.settings import Settings as GatewaySettings
from llm_service.settings import Settings as LLMSettings
from protos.process.settings import ServingSettings
from vision_service.settings import Settings as VisionSettings

CHART = Path(__file__).parents[3] / "deploy" / "helm" / "internvl-serving"
SETTINGS: dict[str, type[ServingSettings]] = {
    "gateway": GatewaySettings,
    "vision": VisionSettings,
    "llm": LLMSettings,
}
# What other values, or the chart itself, decide.
OWN = {
    "host", "port", "metrics-port", "otlp-endpoint", "vision-address", "llm-address", "checkpoint",
    "embedding-key-file", "engine", "served-model-name", "tensorrt.plan",
    "tensorrt-llm.engine-folder", "tensorrt-llm.mpi-mode", "print-config",
    "tls-certificate-file", "tls-key-file", "tls-client-ca-file", "tls-client-names",
    "service-ca-file", "service-certificate-file", "service-key-file", "service-server-name",
    "api-keys-file", "gateway-count",
}  # fmt: skip
KEPT = (
    "type", "enum", "items", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum",
    "minLength", "maxLength", "pattern",
)  # fmt: skip
Schema = dict[str, Any]


def option_schemas(component: str) -> Schema:
    """Returns the schema of `gateway.options`, `vision.options` or `llm.options`."""
    schema = SETTINGS[component].model_json_schema()
    options = dict(_options(schema["properties"], schema.get("$defs", {})))
    return {"type": "object", "additionalProperties": False, "properties": options}


def _options(
    properties: Mapping[str, Schema], definitions: Mapping[str, Schema], group: str = ""
) -> Iterator[tuple[str, Schema]]:
    for field, schema in sorted(properties.items()):
        name = group + field.replace("_", "-")
        definition = definitions.get(schema.get("$ref", "").rpartition("/")[2], {})
        if definition.get("type") == "object":
            yield from _options(definition["properties"], definitions, f"{name}.")
        elif name not in OWN and not _is_secret(schema):
            yield name, _schema(definition or schema)


def _alternatives(schema: Schema) -> list[Schema]:
    return [given for given in schema.get("anyOf", [schema]) if given.get("type") != "null"]


def _is_secret(schema: Schema) -> bool:
    """Says whether an option is no value for plain text; `extraEnv` may take it from a Secret."""
    return any(given.get("format") == "password" for given in _alternatives(schema))


def _schema(schema: Schema) -> Schema:
    """Returns what a value must be; null is how Helm takes a default away, and no value."""
    given, *others = _alternatives(schema)
    if others:  # words and a path: any text
        (kind,) = {each["type"] for each in (given, *others)}
        given = {"type": kind}
    kept = {key: given[key] for key in KEPT if key in given}
    if "items" in kept:
        kept["items"] = {"type": kept["items"]["type"]}
    return kept


def values_schema() -> Schema:
    """Returns the chart's schema with the options as the programs have them now."""
    schema: Schema = json.loads((CHART / "values.schema.json").read_text())
    for component in SETTINGS:
        schema["definitions"][f"{component}Options"] = option_schemas(component)
    return schema


if __name__ == "__main__":
    text = json.dumps(values_schema(), indent=2)
    (CHART / "values.schema.json").write_text(f"{text}\n")
