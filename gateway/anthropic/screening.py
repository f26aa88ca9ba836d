"""Fields of messages that are not served: which pass, and which are refused with a way on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from gateway.anthropic.known_fields import (
    MESSAGES,
    NOT_STORED,
    OBJECTS,
    OTHER_BLOCK,
    OUTPUT_FORMAT,
    OWN_TOOLS,
    READ_BLOCKS,
    REFUSED_BLOCKS,
    SOURCE,
    TOOL,
)
from gateway.openai.refusals import shown
from gateway.openai.screening import screen_object, unknown_field
from protos.errors import UnsupportedFieldError


def screen_messages(body: Mapping[str, Any], *, strict: bool = False) -> list[str]:
    """Returns the paths of unknown fields that ask for something; never any of the messages.

    What is of a wrong type is passed over here.

    Raises:
        UnsupportedFieldError: a field asks for what this server does not do.
        InvalidArgumentError: with `strict`, a field is unknown and asks for something.
    """
    unknown = screen_object(body, MESSAGES, "")
    for name, section in OBJECTS.items():
        unknown += screen_object(body.get(name), section, f"{name}.")
    if isinstance(config := body.get("output_config"), dict):
        unknown += screen_object(config.get("format"), OUTPUT_FORMAT, "output_config.format.")
    for path, tool in _objects(body, "tools", ""):
        if isinstance(kind := tool.get("type"), str) and kind != "custom":
            _refuse("tools", kind, OWN_TOOLS, path)
        unknown += screen_object(tool, TOOL, f"{path}.")
    for path, message in _objects(body, "messages", ""):
        _screen_blocks(message, path)
    if strict and unknown:
        raise unknown_field(unknown[0])
    return unknown


def _screen_blocks(owner: Mapping[str, Any], above: str) -> None:
    for path, block in _objects(owner, "content", f"{above}."):
        if isinstance(kind := block.get("type"), str) and kind not in READ_BLOCKS:
            _refuse("blocks", kind, REFUSED_BLOCKS.get(kind, OTHER_BLOCK), path)
        if isinstance(source := block.get("source"), dict):
            if source.get("type") == "file":
                _refuse("images", "file", NOT_STORED, f"{path}.source")
            screen_object(source, SOURCE, f"{path}.source.")
        if kind == "tool_result":
            _screen_blocks(block, path)


def _objects(
    value: Mapping[str, Any], name: str, above: str
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yields the objects in a member that is a list, each with its JSON path."""
    if isinstance(entries := value.get(name), list):
        for index, entry in enumerate(entries):
            if isinstance(entry, dict):
                yield f"{above}{name}[{index}]", entry


def _refuse(what: str, kind: str, way_on: str, path: str) -> None:
    raise UnsupportedFieldError(
        f"this server has no {what} of the type {shown(kind)}; {way_on}", field=f"{path}.type"
    )
