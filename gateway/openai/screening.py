"""Fields of a request that are not served: which pass, and which are refused with a way on."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from gateway.openai.known_fields import (
    JSON_SCHEMA,
    MESSAGE,
    NOTHING,
    OBJECTS,
    REFUSED_PARTS,
    TOP_LEVEL,
    Refused,
    Section,
)
from gateway.openai.refusals import MAX_PARAM_LENGTH, MAX_SHOWN_LENGTH, shown
from protos.errors import InvalidArgumentError, UnsupportedFieldError

# Only so many unknown fields are named, and so much of a name; a body may hold thousands.
MAX_NAMED_COUNT = 16
STRANGE = re.compile(r"[^A-Za-z0-9_.-]")


def screen(body: Mapping[str, Any], *, strict: bool = False) -> list[str]:
    """Returns the paths of unknown fields that ask for something.

    Those in messages are never among them: a history comes from anywhere. What is of a wrong type
    is passed over here.

    Raises:
        UnsupportedFieldError: a field asks for what this server does not do.
        InvalidArgumentError: with `strict`, a field is unknown and asks for something.
    """
    unknown = _screen_object(body, TOP_LEVEL, "")
    for name, section in OBJECTS.items():
        if name in body:
            unknown += _screen_object(body[name], section, f"{name}.")
    if (response_format := body.get("response_format")) is not None:
        unknown += _screen_schema(response_format)
    if isinstance(messages := body.get("messages"), list):
        _screen_messages(messages)
    if strict and unknown:
        raise _unknown_field(unknown[0])
    return unknown


def listed(paths: Sequence[str]) -> str:
    """Returns paths as a header and a log may hold them: few, short, in plain letters."""
    names = [STRANGE.sub("?", path[:MAX_SHOWN_LENGTH]) for path in paths[:MAX_NAMED_COUNT]]
    return ", ".join(names) + (", ..." if len(paths) > MAX_NAMED_COUNT else "")


def _screen_schema(response_format: object) -> list[str]:
    if not isinstance(response_format, dict):
        return []
    path = "response_format.json_schema."
    return _screen_object(response_format.get("json_schema"), JSON_SCHEMA, path)


def _screen_object(value: object, section: Section, above: str) -> list[str]:
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
    if row.unless is not None and value.get(row.unless[0]) == row.unless[1]:
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


def _screen_messages(messages: list[Any]) -> None:
    for i, message in enumerate(messages):
        if not isinstance(message, dict):
            continue
        if not MESSAGE.refused.isdisjoint(message):
            _screen_object(message, MESSAGE, f"messages[{i}].")
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


def _unknown_field(path: str) -> InvalidArgumentError:
    name = path.rpartition(".")[2][:MAX_SHOWN_LENGTH]
    return InvalidArgumentError(
        f"this server does not know the field '{name}'; leave it out",
        field=path[:MAX_PARAM_LENGTH],
    )
