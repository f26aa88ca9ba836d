"""Fields of /v1/responses that are not served: which pass, and which are refused with a way on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gateway.openai.refusals import shown
from gateway.openai.responses_fields import (
    CHATS_FIELDS,
    FORMAT,
    OTHER_ITEM,
    OTHER_TOOL,
    PART,
    REFUSED_ITEMS,
    REFUSED_PARTS,
    REFUSED_TOOLS,
    RESPONSES,
    STREAM_OPTIONS,
    TEXT,
    TOOL,
)
from gateway.openai.screening import entries, screen_formats, screen_object, unknown_field
from protos.errors import UnsupportedFieldError

ITEM_TYPES = frozenset({"message", "function_call", "function_call_output", "reasoning"})


def screen_responses(body: Mapping[str, Any], *, strict: bool = False) -> list[str]:
    """Returns the paths of unknown fields that ask for something; never any of the input.

    What is of a wrong type is passed over here.

    Raises:
        UnsupportedFieldError: a field asks for what this server does not do.
        InvalidArgumentError: with `strict`, a field is unknown and asks for something.
    """
    others = screen_object(body, RESPONSES, "")
    unknown = screen_object({name: body[name] for name in others}, CHATS_FIELDS, "")
    unknown += screen_object(body.get("stream_options"), STREAM_OPTIONS, "stream_options.")
    if isinstance(text := body.get("text"), dict):
        unknown += screen_object(text, TEXT, "text.")
        unknown += _screen_format(text.get("format"))
    for path, tool in entries(body, "tools"):
        unknown += _screen_tool(tool, path)
    for path, item in entries(body, "input"):
        _screen_item(item, path)
    if strict and unknown:
        raise unknown_field(unknown[0])
    return unknown


def _screen_format(text_format: object) -> list[str]:
    if not isinstance(text_format, dict):
        return []
    unknown = screen_object(text_format, FORMAT, "text.format.")
    return unknown + screen_formats(text_format.get("schema"), "text.format.schema")


def _screen_tool(tool: Mapping[str, Any], path: str) -> list[str]:
    kind = tool.get("type")
    if isinstance(kind, str) and kind != "function":
        _refuse("offer tools", kind, REFUSED_TOOLS.get(kind, OTHER_TOOL), path)
    unknown = screen_object(tool, TOOL, f"{path}.")
    return unknown + screen_formats(tool.get("parameters"), f"{path}.parameters")


def _screen_item(item: Mapping[str, Any], path: str) -> None:
    kind = item.get("type", "message")
    if isinstance(kind, str) and kind not in ITEM_TYPES:
        _refuse("read items", kind, REFUSED_ITEMS.get(kind, OTHER_ITEM), path)
    for name in ("content", "output"):
        for place, part in entries(item, name, f"{path}."):
            _screen_part(part, place)


def _screen_part(part: Mapping[str, Any], path: str) -> None:
    kind = part.get("type")
    if isinstance(kind, str) and kind in REFUSED_PARTS:
        _refuse("read parts", kind, REFUSED_PARTS[kind], path)
    if not PART.refused.isdisjoint(part):
        screen_object(part, PART, f"{path}.")


def _refuse(what: str, kind: str, way_on: str, path: str) -> None:
    raise UnsupportedFieldError(
        f"this server does not {what} of the type {shown(kind)}; {way_on}", field=f"{path}.type"
    )
