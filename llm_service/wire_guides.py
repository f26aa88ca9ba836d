"""The proto messages of guides and tools as this service's own types."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

from llm_service.limits import check_count
from llm_service.model import ModelInfo
from llm_service.sampling import Guide, OutputGuide, ToolCallGuide, ToolCalls
from llm_service.tools.base import ToolDefinition
from protos.errors import InvalidArgumentError
from protos.internvl.v1 import llm_pb2

MAX_TOOL_COUNT = 128
MAX_TOOL_NAME_LENGTH = 128
TOOL_CHOICES = {llm_pb2.TOOL_CHOICE_AUTO: False, llm_pb2.TOOL_CHOICE_REQUIRED: True}


def guide(
    guided: llm_pb2.GuidedDecoding, tools: Sequence[llm_pb2.ToolDefinition], info: ModelInfo
) -> OutputGuide:
    """Returns what the output must be.

    Args:
        guided: the request's guide.
        tools: of its prompt.
        info: what the service runs.

    Raises:
        InvalidArgumentError: it asks for nothing, its choice is unknown, or it names tools that are
            not defined, or malformed.
    """
    plain = _plain_guide(guided)
    if guided.HasField("tool_calls"):
        return _tool_call_guide(guided.tool_calls, tools, plain, info)
    if plain is not None:
        return plain
    raise InvalidArgumentError(
        "the guide is empty; it must ask for any JSON object, or hold a JSON schema, a regular"
        " expression, a grammar or what tools may be called",
        field="guided",
    )


def _plain_guide(guided: llm_pb2.GuidedDecoding) -> Guide | None:
    match guided.WhichOneof("guide"):
        case "json_object":
            return Guide("json_object")
        case "json_schema" | "regex" | "grammar" as kind:
            return Guide(kind, getattr(guided, kind))
    return None


def _tool_call_guide(
    sent: llm_pb2.ToolCallGuide,
    definitions: Sequence[llm_pb2.ToolDefinition],
    plain: Guide | None,
    info: ModelInfo,
) -> ToolCallGuide:
    field = "guided.tool_calls"
    if sent.choice not in TOOL_CHOICES:
        raise InvalidArgumentError(
            f"the choice of tools is {sent.choice}; it must be auto (1) or required (2)",
            field=f"{field}.choice",
        )
    if not definitions:
        raise InvalidArgumentError(
            "the output may call tools, but the prompt defines none", field=field
        )
    tools = tool_definitions(definitions)
    known = frozenset(tool.name for tool in tools)
    for index, name in enumerate(sent.names):
        if name not in known:
            raise InvalidArgumentError(
                f"{name[:MAX_TOOL_NAME_LENGTH]!r} is none of the prompt's tools",
                field=f"{field}.names[{index}]",
            )
    names = frozenset(sent.names) or known
    # Guides are kept: without what says nothing of them, which has no bound of its own.
    rules = tuple(
        replace(tool, description="", parameters=tool.parameters if tool.name in names else "")
        for tool in tools
    )
    calls = ToolCalls(info.tool_format.envelope, rules, names, sent.single)
    is_required = TOOL_CHOICES[sent.choice]
    return ToolCallGuide(calls, is_required, None if is_required else plain)


def tool_definitions(tools: Sequence[llm_pb2.ToolDefinition]) -> tuple[ToolDefinition, ...]:
    """Returns a prompt's tools.

    Raises:
        InvalidArgumentError: there are too many, a name is none or not one tool's alone, or the
            arguments of one have no JSON Schema, or that of no object.
    """
    check_count("chat.tools", "tools", len(tools), MAX_TOOL_COUNT)
    names: set[str] = set()
    for index, tool in enumerate(tools):
        field = f"chat.tools[{index}]"
        if not 1 <= (length := len(tool.name)) <= MAX_TOOL_NAME_LENGTH:
            raise InvalidArgumentError(
                f"a tool's name has {length} characters; it must have 1 to {MAX_TOOL_NAME_LENGTH}",
                field=f"{field}.name",
            )
        if tool.name in names:
            raise InvalidArgumentError(
                f"there are two tools {tool.name!r}; each must have a name of its own",
                field=f"{field}.name",
            )
        names.add(tool.name)
        if tool.parameters:
            _check_parameters(f"{field}.parameters", tool.parameters)
    return tuple(
        ToolDefinition(tool.name, tool.description, tool.parameters, tool.strict) for tool in tools
    )


def _check_parameters(field: str, parameters: str) -> None:
    try:
        schema = json.loads(parameters)
        # As it is written into prompts; half of a surrogate pair has no UTF-8.
        json.dumps(schema, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError) as error:
        raise InvalidArgumentError(
            f"the parameters of a tool are no JSON: {error}", field=field
        ) from error
    if not isinstance(schema, dict):
        raise InvalidArgumentError("the parameters of a tool must be an object", field=field)
    kind = schema.get("type") or "object"
    if kind != "object" and not (isinstance(kind, list) and "object" in kind):
        raise InvalidArgumentError(
            "the arguments of a tool are an object, and the schema's type must be object",
            field=f"{field}.type",
        )
