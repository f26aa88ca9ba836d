"""Fields of a request that are not served: which pass, and which are refused with a way on."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from gateway.openai.known_fields import (
    FUNCTION,
    JSON_SCHEMA,
    MESSAGE,
    NOTHING,
    OBJECTS,
    REFUSED_PARTS,
    TOOL,
    TOP_LEVEL,
    Refused,
    Section,
)
from gateway.openai.refusals import MAX_PARAM_LENGTH, MAX_SHOWN_LENGTH, shown
from protos.errors import InvalidArgumentError, UnsupportedFieldError

# Only so many unknown fields are named, and so much of a path; a body may hold thousands.
MAX_NAMED_COUNT = 16
MAX_PATH_LENGTH = 128
STRANGE = re.compile(r"[^A-Za-z0-9_.\[\]-]")


def screen(
    body: Mapping[str, Any], *, strict: bool = False, section: Section = TOP_LEVEL
) -> list[str]:
    """Returns the paths of unknown fields that ask for something.

    Those in messages are never among them: a history comes from anywhere. What is of a wrong type
    is passed over here.

    Args:
        body: the request.
        strict: whether they are refused instead.
        section: the fields that its dialect knows.

    Raises:
        UnsupportedFieldError: a field asks for what this server does not do.
        InvalidArgumentError: with `strict`, a field is unknown and asks for something.
    """
    unknown = screen_object(body, section, "")
    known = {name: value for name, value in body.items() if name in section.by_name}
    for name, inner in OBJECTS.items():
        if name in known:
            unknown += screen_object(known[name], inner, f"{name}.")
    if (response_format := known.get("response_format")) is not None:
        unknown += _screen_schema(response_format)
    unknown += _screen_tools(known.get("tools"))
    unknown += _screen_functions(known.get("functions"))
    _screen_messages(known.get("messages"))
    if strict and unknown:
        raise unknown_field(unknown[0])
    return unknown


def listed(paths: Sequence[str]) -> str:
    """Returns paths as a header and a log may hold them: few, short, in plain letters."""
    names = [STRANGE.sub("?", path[:MAX_PATH_LENGTH]) for path in paths[:MAX_NAMED_COUNT]]
    return ", ".join(names) + (", ..." if len(paths) > MAX_NAMED_COUNT else "")


def _screen_schema(response_format: object) -> list[str]:
    if not isinstance(response_format, dict):
        return []
    path = "response_format.json_schema."
    return screen_object(response_format.get("json_schema"), JSON_SCHEMA, path)


def _screen_tools(tools: object) -> list[str]:
    unknown: list[str] = []
    for i, tool in _objects(tools):
        kind = tool.get("type", "function")
        if isinstance(kind, str) and kind != "function":
            raise UnsupportedFieldError(
                f"this server has no tools of the type '{kind[:MAX_SHOWN_LENGTH]}'; describe it as"
                " a function, and run that yourself",
                field=f"tools[{i}].type",
            )
        unknown += screen_object(tool, TOOL, f"tools[{i}].")
        unknown += screen_object(tool.get("function"), FUNCTION, f"tools[{i}].function.")
    return unknown


def _screen_functions(functions: object) -> list[str]:
    return [
        path
        for i, function in _objects(functions)
        for path in screen_object(function, FUNCTION, f"functions[{i}].")
    ]


def _objects(values: object) -> list[tuple[int, Any]]:
    """Returns the objects in a list, with their indexes; nothing of what is no list."""
    entries = enumerate(values) if isinstance(values, list) else ()
    return [(i, value) for i, value in entries if isinstance(value, dict)]


def screen_object(value: object, section: Section, above: str) -> list[str]:
    """Returns the paths of an object's unknown fields that ask for something."""
    if not isinstance(value, dict):
        return []
    unknown: list[str] = []
    for name in value:
        if name in section.served:
            continue
        row = section.by_name.get(name)
        if isinstance(row, Refused):
            _check(value, name, row, above)
        elif row is None and not _is_one_of(value[name], NOTHING):
            unknown.append(above + name)
    return unknown


def _check(value: Mapping[str, Any], name: str, row: Refused, above: str) -> None:
    if _is_one_of(value[name], row.harmless):
        return
    raise UnsupportedFieldError(
        f"this server does not support the field '{name}' with {shown(value[name])}; {row.way_on}",
        field=above + name,
    )


def _is_one_of(value: object, harmless: tuple[object, ...]) -> bool:
    # In Python True equals 1, in JSON it is something else.
    return any(
        value == other and isinstance(value, bool) == isinstance(other, bool) for other in harmless
    )


def _screen_messages(messages: object) -> None:
    for i, message in _objects(messages):
        if not MESSAGE.refused.isdisjoint(message):
            screen_object(message, MESSAGE, f"messages[{i}].")
        if isinstance(content := message.get("content"), list):
            _screen_parts(content, i)


def _screen_parts(parts: list[Any], message_index: int) -> None:
    for j, part in enumerate(parts):
        kind = part.get("type") if isinstance(part, dict) else None
        if isinstance(kind, str) and kind in REFUSED_PARTS:
            raise UnsupportedFieldError(
                f"this server does not read parts of the type '{kind}'; {REFUSED_PARTS[kind]}",
                field=f"messages[{message_index}].content[{j}].type",
            )


def unknown_field(path: str) -> InvalidArgumentError:
    """Returns the error for a field that nobody knows."""
    name = path.rpartition(".")[2][:MAX_SHOWN_LENGTH]
    return InvalidArgumentError(
        f"this server does not know the field '{name}'; leave it out",
        field=path[:MAX_PARAM_LENGTH],
    )
