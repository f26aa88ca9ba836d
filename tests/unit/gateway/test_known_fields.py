"""The table of known fields: what each row does to a request, and that the docs say so."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.openai.forms import JSONSchemaFormat, ResponseFormat, StructuredOutputs
from gateway.openai.known_fields import (
    CHAT_TEMPLATE_KWARGS,
    FUNCTION,
    IMAGE_URL,
    JSON_SCHEMA,
    MESSAGE,
    PART,
    REFUSED_PARTS,
    RESPONSE_FORMAT,
    SECTIONS,
    STREAM_OPTIONS,
    STRUCTURED_OUTPUTS,
    TOOL,
    TOOL_CHOICE,
    TOP_LEVEL,
    Hint,
    Refused,
    Section,
    Served,
)
from gateway.openai.options import StreamOptions
from gateway.openai.request_model import RequestModel
from gateway.openai.requests import (
    ChatCompletionRequest,
    ContentPart,
    ImageURL,
    Message,
    parse_chat_request,
)
from gateway.openai.tools import ChosenTools, FunctionDefinition, ToolDefinition
from protos.errors import InvalidArgumentError, UnsupportedFieldError
from tests.fakes import chat_body

PAGE = Path(__file__).parents[3] / "docs" / "clients.md"
BEGIN, END = "<!-- the table of known fields -->\n", "<!-- its end -->\n"
MODELS: dict[Section, type[RequestModel]] = {
    TOP_LEVEL: ChatCompletionRequest,
    MESSAGE: Message,
    PART: ContentPart,
    IMAGE_URL: ImageURL,
    STREAM_OPTIONS: StreamOptions,
    RESPONSE_FORMAT: ResponseFormat,
    JSON_SCHEMA: JSONSchemaFormat,
    STRUCTURED_OUTPUTS: StructuredOutputs,
    TOOL: ToolDefinition,
    FUNCTION: FunctionDefinition,
    TOOL_CHOICE: ChosenTools,
}


def parse(strict_fields: bool = False, **fields: Any) -> ChatCompletionRequest:
    return parse_chat_request(json.dumps(chat_body(**fields)).encode(), strict_fields)


def refusal(strict_fields: bool = False, **fields: Any) -> InvalidArgumentError:
    with pytest.raises(InvalidArgumentError) as caught:
        parse(strict_fields, **fields)
    return caught.value


def user(*parts: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": list(parts)}]}


@pytest.mark.parametrize("section", MODELS, ids=lambda section: section.title)
def test_what_is_served_is_what_is_read(section: Section) -> None:
    fields = MODELS[section].model_fields.items()
    assert section.served == {field.alias or name for name, field in fields}


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.title)
def test_a_field_has_one_row(section: Section) -> None:
    names = [name for row in section.rows for name in row.names]
    assert len(names) == len(set(names))


def names_of(kind: type[Hint] | type[Refused]) -> list[str]:
    return [name for row in TOP_LEVEL.rows if isinstance(row, kind) for name in row.names]


@pytest.mark.parametrize("strict", [False, True])
def test_hints_pass(strict: bool) -> None:
    for value in (None, 5, "a", {"a": [1]}, True):
        fields: dict[str, Any] = dict.fromkeys(names_of(Hint), value) | {"chat_template_kwargs": {}}
        assert parse(strict, **fields).ignored_fields is None


@pytest.mark.parametrize("name", names_of(Refused))
def test_a_refused_field_passes_with_the_values_of_its_row(name: str) -> None:
    row = TOP_LEVEL.by_name[name]
    assert isinstance(row, Refused)
    for value in row.harmless:
        assert parse(True, **{name: value}).ignored_fields is None
    error = refusal(False, **{name: {"a": 1}})
    assert isinstance(error, UnsupportedFieldError)
    assert error.field == name
    sentence = f"this server does not support the field '{name}' with an object; {row.way_on}"
    assert error.message == sentence


@pytest.mark.parametrize(
    "fields",
    [
        {"n": 1, "best_of": 1, "num_beams": 1},
        {"echo": False, "use_beam_search": False, "include_stop_str_in_output": False},
        {"top_k": -1},
        {"top_k": 0},
        {"add_generation_prompt": True},
        {"chat_template_kwargs": {}},
        {"chat_template_kwargs": {"enable_thinking": False}},
        {"mm_processor_kwargs": {}},
        {"repeat_penalty": 1},
        {"repeat_penalty": 1.0},
        {"tools": [], "tool_choice": "auto"},
        {"tools": [{"type": "web_search"}, 5], "tool_choice": "none"},
        {"tools": [{"type": "function"}], "tool_choice": {"type": "none"}},
        {"tools": None, "tool_choice": "none", "parallel_tool_calls": False},
        {"tool_choice": None, "functions": [], "function_call": "auto"},
        {"structured_outputs": {"json_object": False, "regex": "a"}},
        {"guided_json": {}, "guided_regex": "", "guided_choice": [], "guided_grammar": ""},
        {"functions": [{"name": "f"}], "function_call": "none"},
        {"modalities": ["text"]},
        {"store": True, "service_tier": "flex", "reasoning_effort": "high", "verbosity": "low"},
        {"stream": True, "stream_options": {"include_obfuscation": False}},
        {"something_new": None},
        {"something_new": {}},
        {"something_new": []},
    ],
    ids=str,
)
def test_what_asks_for_nothing_passes(fields: dict[str, Any]) -> None:
    assert parse(True, **fields).ignored_fields is None


@pytest.mark.parametrize(
    ("fields", "param", "sentence"),
    [
        (
            {"best_of": 4},
            "best_of",
            "this server does not support the field 'best_of' with 4;"
            " use 'n', and choose among the answers",
        ),
        (
            {"best_of": True},
            "best_of",
            "this server does not support the field 'best_of' with true;"
            " use 'n', and choose among the answers",
        ),
        (
            {"format": "json" * 30},
            "format",
            f"this server does not support the field 'format' with '{'json' * 16}';"
            " use 'response_format'",
        ),
        (
            {"tools": [{"type": "function", "function": {"name": "f"}}, {"type": "web_search"}]},
            "tools[1].type",
            "this server has no tools of the type 'web_search'; describe it as a function, and run"
            " that yourself",
        ),
        (
            {"web_search_options": {}},
            "web_search_options",
            "this server does not support the field 'web_search_options' with an object;"
            " leave it out: nothing is looked up here",
        ),
        (
            {"response_format": {"type": "json_object", "schema": {"type": "object"}}},
            "response_format.schema",
            "this server does not support the field 'schema' with an object;"
            " put it into 'json_schema', and set the type to 'json_schema'",
        ),
        (
            {"messages": [{"role": "user", "content": "Hi", "images": ["aGk="]}]},
            "messages[0].images",
            "this server does not support the field 'images' with a list;"
            " use content parts of the type 'image_url'",
        ),
        (
            {"stream": True, "stream_options": {"include_obfuscation": True}},
            "stream_options.include_obfuscation",
            "this server does not support the field 'include_obfuscation' with true;"
            " leave it out: nothing is padded",
        ),
    ],
)
def test_what_cannot_be_honoured_is_refused_with_a_way_on(
    fields: dict[str, Any], param: str, sentence: str
) -> None:
    error = refusal(**fields)
    assert (error.field, error.message) == (param, sentence)


@pytest.mark.parametrize("kind", REFUSED_PARTS)
def test_parts_of_other_kinds_are_refused_with_a_way_on(kind: str) -> None:
    error = refusal(**user("What?", {"type": kind, kind: {"url": "data:,"}}))
    assert isinstance(error, UnsupportedFieldError)
    assert error.field == "messages[0].content[1].type"
    expected = f"this server does not read parts of the type '{kind}'; {REFUSED_PARTS[kind]}"
    assert error.message == expected


def test_a_video_is_one_picture_a_frame() -> None:
    assert "one picture a frame" in refusal(**user({"type": "video_url"})).message


def test_unknown_fields_in_messages_pass() -> None:
    picture = {"url": "data:image/png;base64,aGk=", "format": "image/png", "mood": 1}
    part = {"type": "image_url", "image_url": picture, "uuid": "1", "mood": {"a": 1}}
    message = {"role": "user", "content": [part], "name": "alice", "mood": "good"}
    answer: dict[str, Any] = {
        "role": "assistant",
        "content": "Hello!",
        "reasoning_content": None,
        "refusal": None,
        "annotations": [],
        "audio": None,
        "parsed": {"animal": "cat"},
    }
    request = parse(True, messages=[message, answer, message])
    assert request.ignored_fields is None
    assert len(list(request.images())) == 2


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"wizardry": 1}, "wizardry"),
        ({"wizardry": False}, "wizardry"),
        ({"wizardry": "x"}, "wizardry"),
        ({"stream": True, "stream_options": {"x": 1}}, "stream_options.x"),
        ({"chat_template_kwargs": {"x": 1}}, "chat_template_kwargs.x"),
        ({"tools": [{"function": {"name": "f"}, "x": 1}]}, "tools[0].x"),
        ({"tools": [{"function": {"name": "f", "x": 1}}]}, "tools[0].function.x"),
        ({"functions": [{"name": "f", "x": 1}]}, "functions[0].x"),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "x", "schema": {}, "mood": 1},
                }
            },
            "response_format.json_schema.mood",
        ),
    ],
    ids=str,
)
def test_an_unknown_field_with_a_value_is_named_or_refused(
    fields: dict[str, Any], path: str
) -> None:
    assert parse(**fields).ignored_fields == path
    error = refusal(True, **fields)
    assert error.field == path
    name = path.split(".")[-1]
    assert error.message == f"this server does not know the field '{name}'; leave it out"


NOTE = {"properties": {"size": {"anyOf": [{"format": "email"}, {"format": "uint8"}]}}}


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "x", "schema": NOTE, "strict": True},
                }
            },
            "response_format.json_schema.schema",
        ),
        ({"structured_outputs": {"json": NOTE}}, "structured_outputs.json"),
        ({"guided_json": NOTE}, "guided_json"),
        (
            {"tools": [{"function": {"name": "f", "parameters": NOTE}}]},
            "tools[0].function.parameters",
        ),
        ({"functions": [{"name": "f", "parameters": NOTE}]}, "functions[0].parameters"),
    ],
    ids=str,
)
def test_a_format_that_nobody_enforces_is_named_or_refused(
    fields: dict[str, Any], path: str
) -> None:
    place = f"{path}.properties.size.anyOf[1].format"
    assert parse(**fields).ignored_fields == place
    error = refusal(True, **fields)
    assert error.field == place
    assert error.message == (
        "this server does not enforce this format; leave it out, or use a pattern"
    )


def test_the_list_of_ignored_fields_is_short_and_plain() -> None:
    names = parse(False, **{"x" * 10_000: 1, "ü\r\nSet-Cookie: a, b": 2}).ignored_fields
    assert names == "x" * 128 + ", ???Set-Cookie??a??b"
    error = refusal(True, **{"x" * 10_000: 1})
    assert len(error.message) < 200
    assert len(error.field) <= 200


def quoted(text: str) -> str:
    """Returns a sentence with Markdown's marks of code for the quotation marks."""
    return re.sub(r"'([^']*)'", r"`\1`", text)


def code(names: tuple[str, ...]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def printed(section: Section) -> Iterator[str]:
    """Yields the lines of a section in the documentation."""
    yield f"#### {section.title}"
    served = [row for row in section.rows if isinstance(row, Served)]
    if served:
        yield ""
        yield "| field | meaning here |"
        yield "| --- | --- |"
        yield from (f"| {code(row.names)} | {row.meaning} |" for row in served)
    hints = [name for row in section.rows if isinstance(row, Hint) for name in row.names]
    if hints:
        yield ""
        yield f"Labels and hints, accepted and ignored: {code(tuple(hints))}."
    refused = [row for row in section.rows if isinstance(row, Refused)]
    if refused:
        yield ""
        yield "| refused | but passes with | way on |"
        yield "| --- | --- | --- |"
        yield from (refused_line(row) for row in refused)
    yield ""


def refused_line(row: Refused) -> str:
    values = [json.dumps(value) for value in row.harmless if value not in (None, {}, [])]
    passes = code(tuple(values)) if [] in row.harmless else "`null` alone"
    return f"| {code(row.names)} | {passes} | {quoted(row.way_on)} |"


def test_the_documentation_prints_the_table() -> None:
    table = "\n".join(line for section in SECTIONS for line in printed(section)) + "\n"
    page = PAGE.read_text(encoding="utf-8")
    assert page.partition(BEGIN)[2].partition(END)[0] == table, f"it must be:\n{table}"


def test_the_documentation_lists_the_parts_that_are_refused() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert all(f"`{kind}`" in page for kind in REFUSED_PARTS)


def test_sections_that_have_no_model_serve_nothing() -> None:
    assert set(SECTIONS) - set(MODELS) == {CHAT_TEMPLATE_KWARGS}
    assert not CHAT_TEMPLATE_KWARGS.served
