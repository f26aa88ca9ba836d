"""The OpenAPI document, made of the operations and of the models that read the requests."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import TypeAdapter
from pydantic.json_schema import JsonSchemaMode

from gateway.access.authentication import KEY_HEADER
from gateway.openai.answer_types import ErrorAnswer
from gateway.openai.errors import CHALLENGE
from gateway.openai.known_fields import Section, Served
from gateway.openapi.operation import OF_ALL, OF_KEYS, Operation, Parameter
from gateway.paths import OPEN_PATHS
from gateway.release import PROJECT, release

JSON = "application/json"
EVENTS = "text/event-stream"
REFERENCE = "#/components/schemas/{model}"
DESCRIPTION = """InternVL behind OpenAI's and Anthropic's APIs.

A field that asks for nothing passes; one that this server does not know is named in the header
x-internvl-ignored; one that it cannot honour is refused with a sentence that names it."""
HEADERS = {
    "x-request-id": {
        "description": "The id under which logs have the request: the client's, or a new one.",
        "schema": {"type": "string"},
    },
    "x-internvl-ignored": {
        "description": "Fields that were passed over though they ask for something.",
        "schema": {"type": "string"},
    },
    "Retry-After": {
        "description": "Seconds after which to try again.",
        "schema": {"type": "integer", "minimum": 1},
    },
    "WWW-Authenticate": {
        "description": "What the server takes as a key.",
        "schema": {"const": CHALLENGE},
    },
}
HEADERS_OF_ERRORS = {"401": ["WWW-Authenticate"], "429": ["Retry-After"], "503": ["Retry-After"]}
SECURITY_SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "As OpenAI's clients send it."},
    "x-api-key": {
        "type": "apiKey",
        "in": "header",
        "name": KEY_HEADER,
        "description": "As Anthropic's clients send it.",
    },
}
# By method, as OpenAPI writes it, and path.
Operations = Mapping[tuple[str, str], Operation]


def document(operations: Operations, *, asks_for_keys: bool = False) -> dict[str, Any]:
    """Returns the document of these operations, of a server that asks for API keys or does not."""
    schemas = _Schemas(operations)
    paths: dict[str, dict[str, Any]] = {}
    for (method, path), operation in operations.items():
        is_guarded = asks_for_keys and path not in OPEN_PATHS
        described = _operation(method, path, operation, schemas, is_guarded)
        paths.setdefault(path, {})[method] = described
    schemes = {"securitySchemes": SECURITY_SCHEMES} if asks_for_keys else {}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": PROJECT,
            "version": release().version or "0",
            "description": DESCRIPTION,
        },
        "paths": paths,
        "components": {"schemas": schemas.definitions, "headers": HEADERS, **schemes},
    }


class _Schemas:
    """JSON Schemas of all types, and where they stand in the document.

    Attributes:
        definitions: by the names of the types.
    """

    def __init__(self, operations: Operations) -> None:
        modes: dict[tuple[Any, JsonSchemaMode], None] = {(ErrorAnswer, "serialization"): None}
        for each in operations.values():
            if each.request:
                modes[each.request, "validation"] = None
            for one in filter(None, (each.answer, each.event, each.error)):
                modes[one, "serialization"] = None
        self._places, definitions = TypeAdapter.json_schemas(
            [(one, mode, TypeAdapter(one)) for one, mode in modes], ref_template=REFERENCE
        )
        self.definitions: dict[str, Any] = definitions["$defs"]
        for each in operations.values():
            for model, section in each.sections.items():
                _describe(self.definitions[model.__name__]["properties"], section)

    def of(self, one: Any, mode: JsonSchemaMode = "serialization") -> dict[str, Any]:
        """Returns a schema that leads to a type's."""
        return self._places[one, mode]


def _describe(properties: Mapping[str, dict[str, Any]], section: Section) -> None:
    """Adds what the table of known fields says of those that are served."""
    for name, schema in properties.items():
        row = section.by_name.get(name)
        if isinstance(row, Served):
            schema["description"] = row.meaning.removesuffix("; see below")


def _operation(
    method: str, path: str, operation: Operation, schemas: _Schemas, is_guarded: bool
) -> dict[str, Any]:
    described: dict[str, Any] = {
        "operationId": _operation_id(method, path),
        "summary": operation.summary,
        "responses": _responses(operation, schemas, OF_KEYS if is_guarded else {}),
    }
    if is_guarded:
        described["security"] = [{name: []} for name in SECURITY_SCHEMES]
    if operation.description:
        described["description"] = operation.description
    if operation.parameters:
        described["parameters"] = [_parameter(each) for each in operation.parameters]
    if operation.request:
        content = {
            "schema": schemas.of(operation.request, "validation"),
            "examples": {name: {"value": body} for name, body in operation.examples.items()},
        }
        described["requestBody"] = {"required": True, "content": {JSON: content}}
    return described


def _operation_id(method: str, path: str) -> str:
    return method + re.sub(r"[^A-Za-z0-9]+", "_", path).rstrip("_")


def _parameter(parameter: Parameter) -> dict[str, Any]:
    return {
        "name": parameter.name,
        "in": parameter.place,
        "description": parameter.description,
        "required": parameter.required or parameter.place == "path",
        "schema": dict(parameter.schema),
        "example": parameter.example,
    }


def _responses(
    operation: Operation, schemas: _Schemas, errors_of_keys: Mapping[str, str]
) -> dict[str, Any]:
    content = {JSON: {"schema": schemas.of(operation.answer)}}
    if operation.event:
        content[EVENTS] = {"schema": _event(operation, schemas)}
    names = ["x-request-id", *(["x-internvl-ignored"] if operation.request else [])]
    responses = {"200": _response("The answer.", content, names)}
    error = {JSON: {"schema": schemas.of(operation.error or ErrorAnswer)}}
    texts = (OF_ALL, operation.errors, errors_of_keys)
    for status in sorted(set().union(*texts)):
        description = " ".join(text[status] for text in texts if status in text)
        answer = content if status == "503" and operation.unready else error
        names = ["x-request-id", *HEADERS_OF_ERRORS.get(status, ())]
        responses[status] = _response(description, answer, names)
    return responses


def _event(operation: Operation, schemas: _Schemas) -> dict[str, Any]:
    """Returns the schema of each event of a stream: its data, and its name where it has one."""
    kinds = [schemas.of(operation.event), schemas.of(operation.error or ErrorAnswer)]
    text = {"type": "string", "contentMediaType": JSON, "contentSchema": {"anyOf": kinds}}
    end = [{"const": operation.last_word}] if operation.last_word else []
    members = {"event": {"type": "string"}, "data": {"anyOf": [text, *end]}}
    required = list(members) if operation.names_events else ["data"]
    return {"type": "object", "properties": members, "required": required}


def _response(
    description: str, content: Mapping[str, Any], headers: Sequence[str]
) -> dict[str, Any]:
    references = {name: {"$ref": f"#/components/headers/{name}"} for name in headers}
    return {"description": description, "headers": references, "content": content}
