"""Fields of a request that are not served: which pass, and which are refused with a way on."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
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
from protos.json_schema import unknown_formats

# Only so many unknown fields are named, and so much of a path; a body may hold thousands.
MAX_NAMED_COUNT = 16
MAX_PATH_LENGTH = 128
STRANGE = re.compile(r"[^A-Za-z0-9_.\[\]-]")


def screen(
    body: Mapping[str, Any], *, strict: bool = False, section: Section = TOP_LEVEL
) -> list[str]:
    """Returns the paths of unknown fields that ask for something, and of formats without effect.

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
    unknown += _screen_schema(known.get("response_format"))
    unknown += screen_formats(
        _member(known, "structured_outputs", "json"), "structured_outputs.json"
    )
    unknown += screen_formats(known.get("guided_json"), "guided_json")
    for path, tool in entries(known, "tools"):
        unknown += _screen_tool(tool, path)
    for path, function in entries(known, "functions"):
        unknown += _screen_function(function, path)
    for path, message in entries(known, "messages"):
        _screen_message(message, path)
    if strict and unknown:
        raise unknown_field(unknown[0])
    return unknown


def listed(paths: Sequence[str]) -> str:
    """Returns paths as a header and a log may hold them: few, short, in plain letters."""
    names = [STRANGE.sub("?", path[:MAX_PATH_LENGTH]) for path in paths[:MAX_NAMED_COUNT]]
    return ", ".join(names) + (", ..." if len(paths) > MAX_NAMED_COUNT else "")


def screen_formats(schema: object, path: str) -> list[str]:
    """Returns the paths of the formats in a JSON Schema that nobody enforces."""
    if not isinstance(schema, dict):
        return []
    return [path + "".join(map(_step, place)) for place in unknown_formats(schema)]


def _step(key: str | int) -> str:
    return f"[{key}]" if isinstance(key, int) else f".{key}"


def entries(
    value: Mapping[str, Any], name: str, above: str = ""
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yields the objects in a member that is a list, each with its JSON path."""
    if isinstance(members := value.get(name), list):
        for index, member in enumerate(members):
            if isinstance(member, dict):
                yield f"{above}{name}[{index}]", member


def _member(value: Mapping[str, Any], *names: str) -> object:
    member: object = value
    for name in names:
        member = member.get(name) if isinstance(member, dict) else None
    return member


def _screen_schema(response_format: object) -> list[str]:
    if not isinstance(response_format, dict):
        return []
    path = "response_format.json_schema"
    unknown = screen_object(response_format.get("json_schema"), JSON_SCHEMA, f"{path}.")
    schema = _member(response_format, "json_schema", "schema")
    return unknown + screen_formats(schema, f"{path}.schema")


def _screen_tool(tool: Mapping[str, Any], path: str) -> list[str]:
    kind = tool.get("type")
    if isinstance(kind, str) and kind != "function":
        raise UnsupportedFieldError(
            f"this server has no tools of the type '{kind[:MAX_SHOWN_LENGTH]}'; describe it as a"
            " function, and run that yourself",
            field=f"{path}.type",
        )
    unknown = screen_object(tool, TOOL, f"{path}.")
    return unknown + _screen_function(tool.get("function"), f"{path}.function")


def _screen_function(function: object, path: str) -> list[str]:
    if not isinstance(function, dict):
        return []
    unknown = screen_object(function, FUNCTION, f"{path}.")
    return unknown + screen_formats(function.get("parameters"), f"{path}.parameters")


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


def _screen_message(message: Mapping[str, Any], path: str) -> None:
    if not MESSAGE.refused.isdisjoint(message):
        screen_object(message, MESSAGE, f"{path}.")
    for at, part in entries(message, "content", f"{path}."):
        kind = part.get("type")
        if isinstance(kind, str) and kind in REFUSED_PARTS:
            raise UnsupportedFieldError(
                f"this server does not read parts of the type '{kind}'; {REFUSED_PARTS[kind]}",
                field=f"{at}.type",
            )


def unknown_field(path: str) -> InvalidArgumentError:
    """Returns the error for a field that nobody knows, or a format that nobody enforces."""
    name = path.rpartition(".")[2][:MAX_SHOWN_LENGTH]
    sentence = f"this server does not know the field '{name}'; leave it out"
    if name == "format":
        sentence = "this server does not enforce this format; leave it out, or use a pattern"
    return InvalidArgumentError(sentence, field=path[:MAX_PARAM_LENGTH])
