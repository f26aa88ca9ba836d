"""The tables of the fields of /v1/responses: that they are true, and that the docs print them."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from gateway.openai.known_fields import Hint, Refused, Section
from gateway.openai.request_model import RequestModel
from gateway.openai.responses import (
    CallOutput,
    FunctionTool,
    InputCall,
    InputMessage,
    InputPart,
    ResponsesRequest,
    TextFormat,
    TextOptions,
    parse_responses_request,
)
from gateway.openai.responses_fields import (
    CHATS_FIELDS,
    FORMAT,
    ITEM,
    PART,
    REFUSED_ITEMS,
    REFUSED_PARTS,
    REFUSED_TOOLS,
    RESPONSES,
    SECTIONS,
    STREAM_OPTIONS,
    TEXT,
    TOOL,
)
from protos.errors import UnsupportedFieldError
from tests.unit.gateway.test_known_fields import PAGE, printed

BEGIN, END = "<!-- the table of fields of responses -->\n", "<!-- the end of these -->\n"
MODELS: dict[Section, tuple[type[RequestModel], ...]] = {
    RESPONSES: (ResponsesRequest,),
    TEXT: (TextOptions,),
    FORMAT: (TextFormat,),
    TOOL: (FunctionTool,),
    ITEM: (InputMessage, InputCall, CallOutput),
    PART: (InputPart,),
}


def names_of(kind: type[Hint] | type[Refused]) -> list[str]:
    return [name for row in RESPONSES.rows if isinstance(row, kind) for name in row.names]


@pytest.mark.parametrize("section", MODELS, ids=lambda section: section.title)
def test_what_is_served_is_what_is_read(section: Section) -> None:
    fields = [field for model in MODELS[section] for field in model.model_fields.items()]
    assert section.served == {field.alias or name for name, field in fields}


def test_sections_that_have_no_model_serve_nothing() -> None:
    assert set(SECTIONS) - set(MODELS) == {STREAM_OPTIONS}
    assert not STREAM_OPTIONS.served


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.title)
def test_a_field_has_one_row(section: Section) -> None:
    names = [name for row in section.rows for name in row.names]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("value", [None, 5, "a", {"include_usage": [1]}, True])
def test_hints_pass(value: Any) -> None:
    body = json.dumps({"input": "Hi", **dict.fromkeys(names_of(Hint), value)}).encode()
    request, _ = parse_responses_request(body, strict_fields=True)
    assert request.ignored_fields is None


@pytest.mark.parametrize("name", names_of(Refused))
def test_a_refused_field_passes_with_the_values_of_its_row(name: str) -> None:
    row = RESPONSES.by_name[name]
    assert isinstance(row, Refused)
    for value in row.harmless:
        parse_responses_request(json.dumps({"input": "Hi", name: value}).encode(), True)
    with pytest.raises(UnsupportedFieldError) as caught:
        parse_responses_request(json.dumps({"input": "Hi", name: {"a": 1}}).encode())
    assert caught.value.field == name
    assert caught.value.message.endswith(row.way_on)


def test_what_a_chat_refuses_is_refused_and_no_way_on_leads_to_what_is_not_served() -> None:
    refused = [row for row in CHATS_FIELDS.rows if isinstance(row, Refused)]
    names = [name for row in refused for name in row.names if name not in RESPONSES.by_name]
    assert "watermark" in names
    for name in names:
        with pytest.raises(UnsupportedFieldError) as caught:
            parse_responses_request(json.dumps({"input": "Hi", name: {"a": 1}}).encode())
        assert caught.value.field == name
        quoted = re.findall(r"'(\w+)'", caught.value.message.partition("; ")[2])
        assert set(quoted) <= RESPONSES.served | PART.served


def test_the_documentation_prints_the_tables() -> None:
    table = "\n".join(line for section in SECTIONS for line in printed(section)) + "\n"
    page = PAGE.read_text(encoding="utf-8")
    assert page.partition(BEGIN)[2].partition(END)[0] == table, f"it must be:\n{table}"


def test_the_documentation_lists_the_types_that_are_refused() -> None:
    page = PAGE.read_text(encoding="utf-8").partition(END)[2]
    for kind in (*REFUSED_ITEMS, *REFUSED_PARTS, *REFUSED_TOOLS):
        assert f"`{kind}`" in page
