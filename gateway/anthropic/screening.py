"""Fields of messages that are not served: which pass, and which are refused with a way on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gateway.anthropic.known_fields import (
    NOT_STORED,
    OBJECTS,
    OTHER_BLOCK,
    OUTPUT_FORMAT,
    OWN_TOOLS,
    READ_BLOCKS,
    REFUSED_BLOCKS,
    REQUEST,
    SOURCE,
    TOOL,
)
from gateway.openai.refusals import shown
from gateway.openai.screening import entries, screen_formats, screen_object, unknown_field
from protos.errors import UnsupportedFieldError


def screen_messages(body: Mapping[str, Any], *, strict: bool = False) -> list[str]:
    """Returns the paths of unknown fields that ask for something, and of formats without effect.

    Those in messages are never among them. What is of a wrong type is passed over here.

    Raises:
        UnsupportedFieldError: a field asks for what this server does not do.
        InvalidArgumentError: with `strict`, a field is unknown and asks for something.
    """
    unknown = screen_object(body, REQUEST, "")
    for name, section in OBJECTS.items():
        unknown += screen_object(body.get(name), section, f"{name}.")
    if isinstance(config := body.get("output_config"), dict):
        unknown += screen_object(config.get("format"), OUTPUT_FORMAT, "output_config.format.")
        unknown += _screen_schema(config.get("format"), "schema", "output_config.format")
    unknown += _screen_schema(body.get("output_format"), "schema", "output_format")
    for path, tool in entries(body, "tools"):
        if isinstance(kind := tool.get("type"), str) and kind != "custom":
            _refuse("tools", kind, OWN_TOOLS, path)
        unknown += screen_object(tool, TOOL, f"{path}.")
        unknown += _screen_schema(tool, "input_schema", path)
    for path, message in entries(body, "messages"):
        _screen_blocks(message, path)
    if strict and unknown:
        raise unknown_field(unknown[0])
    return unknown


def _screen_blocks(owner: Mapping[str, Any], above: str) -> None:
    for path, block in entries(owner, "content", f"{above}."):
        if isinstance(kind := block.get("type"), str) and kind not in READ_BLOCKS:
            _refuse("blocks", kind, REFUSED_BLOCKS.get(kind, OTHER_BLOCK), path)
        if isinstance(source := block.get("source"), dict):
            if source.get("type") == "file":
                _refuse("images", "file", NOT_STORED, f"{path}.source")
            screen_object(source, SOURCE, f"{path}.source.")
        if kind == "tool_result":
            _screen_blocks(block, path)


def _screen_schema(holder: object, name: str, path: str) -> list[str]:
    schema = holder.get(name) if isinstance(holder, dict) else None
    return screen_formats(schema, f"{path}.{name}")


def _refuse(what: str, kind: str, way_on: str, path: str) -> None:
    raise UnsupportedFieldError(
        f"this server has no {what} of the type {shown(kind)}; {way_on}", field=f"{path}.type"
    )
