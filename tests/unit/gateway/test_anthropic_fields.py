"""The table of Anthropic's fields, and values of any type at any of them."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.anthropic.known_fields import (
    BLOCK,
    MESSAGE,
    OUTPUT_CONFIG,
    OUTPUT_FORMAT,
    READ_BLOCKS,
    REFUSED_BLOCKS,
    REQUEST,
    SECTIONS,
    SOURCE,
    TOOL,
    TOOL_CHOICE,
)
from gateway.anthropic.requests import (
    Block,
    ImageSource,
    MessageParam,
    MessagesRequest,
    OutputConfig,
    OutputFormat,
    ToolChoiceParam,
    ToolParam,
    parse_request,
)
from gateway.dialects import messages
from gateway.openai.known_fields import Hint, Refused, Section
from gateway.openai.request_model import RequestModel
from gateway.services.messages import generate_start
from protos.errors import InvalidArgumentError, UnsupportedFieldError
from tests.unit.gateway.test_known_fields import printed
from tests.unit.gateway.test_wrong_types import (
    SAMPLES,
    check_sentence,
    paths,
    values,
    with_value,
)

PAGE = Path(__file__).parents[3] / "docs" / "clients.md"
BEGIN, END = "<!-- the table of Anthropic's fields -->\n", "<!-- its end -->\n"
MODELS: dict[Section, type[RequestModel]] = {
    REQUEST: MessagesRequest,
    MESSAGE: MessageParam,
    BLOCK: Block,
    SOURCE: ImageSource,
    TOOL: ToolParam,
    TOOL_CHOICE: ToolChoiceParam,
    OUTPUT_CONFIG: OutputConfig,
    OUTPUT_FORMAT: OutputFormat,
}
IMAGE: dict[str, Any] = {
    "type": "image",
    "source": {"type": "base64", "media_type": "image/png", "data": "aGk="},
    "detail": "low",
    "max_dynamic_patch": 1,
}
FULL: dict[str, Any] = {
    "model": "m",
    "max_tokens": 5,
    "system": [{"type": "text", "text": "a"}],
    "messages": [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "b"},
                IMAGE,
                {"type": "image", "source": {"type": "url", "url": "http://example.com"}},
            ],
        },
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "c", "signature": "d"},
                {"type": "tool_use", "id": "e", "name": "f", "input": {}},
            ],
        },
        {
            "role": "user",
            "content": [
                {
                    "type": "tool_result",
                    "tool_use_id": "e",
                    "content": [{"type": "text", "text": "g"}, IMAGE],
                    "is_error": False,
                },
                {"type": "tool_result", "content": "h"},
            ],
        },
        {"role": "system", "content": "i"},
    ],
    "stop_sequences": ["a"],
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": 5,
    "stream": True,
    "tools": [
        {"type": "custom", "name": "f", "description": "j", "input_schema": {}, "strict": True}
    ],
    "tool_choice": {"type": "tool", "name": "f", "disable_parallel_tool_use": True},
    "output_config": {"format": {"type": "json_schema", "schema": {}}},
    "output_format": None,
    "seed": 1,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "skip_special_tokens": True,
    "cache_salt": "s",
    "priority": 0,
    "metadata": {},
    "container": None,
}
PLACES = list(paths(FULL))


def parse(strict_fields: bool = False, **fields: Any) -> MessagesRequest:
    body = {"max_tokens": 5, "messages": [{"role": "user", "content": "Hi"}], **fields}
    return parse_request(MessagesRequest, json.dumps(body).encode(), strict_fields)


@pytest.mark.parametrize("section", MODELS, ids=lambda section: section.title)
def test_what_is_served_is_what_is_read(section: Section) -> None:
    fields = MODELS[section].model_fields.items()
    assert section.served == {field.alias or name for name, field in fields}


def test_every_section_has_a_model_and_each_field_one_row() -> None:
    assert set(SECTIONS) == set(MODELS)
    for section in SECTIONS:
        names = [name for row in section.rows for name in row.names]
        assert len(names) == len(set(names))


def names_of(kind: type[Hint] | type[Refused]) -> list[str]:
    return [name for row in REQUEST.rows if isinstance(row, kind) for name in row.names]


def test_hints_pass() -> None:
    for value in (None, 5, "a", {"a": [1]}, True):
        assert parse(True, **dict.fromkeys(names_of(Hint), value)).ignored_fields is None


@pytest.mark.parametrize("name", names_of(Refused))
def test_a_refused_field_passes_with_the_values_of_its_row(name: str) -> None:
    row = REQUEST.by_name[name]
    assert isinstance(row, Refused)
    for value in row.harmless:
        assert parse(True, **{name: value}).ignored_fields is None
    with pytest.raises(UnsupportedFieldError, match=row.way_on) as caught:
        parse(False, **{name: {"a": 1}})
    assert caught.value.field == name


def test_the_documentation_prints_the_table() -> None:
    table = "\n".join(line for section in SECTIONS for line in printed(section)) + "\n"
    page = PAGE.read_text(encoding="utf-8")
    assert page.partition(BEGIN)[2].partition(END)[0] == table, f"it must be:\n{table}"


def test_the_documentation_lists_the_blocks_that_are_refused() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert all(f"`{kind}`" in page for kind in REFUSED_BLOCKS)
    assert not READ_BLOCKS & REFUSED_BLOCKS.keys()


def send(document: Any) -> None:
    """Does all that the gateway does with a document until the LLM service has it."""
    try:
        call = messages.MESSAGES.parse(json.dumps(document).encode(), False)
    except InvalidArgumentError as error:
        check_sentence(error)
    else:
        (request,) = call.generations
        generate_start(request.fields)
        assert all(request.name_field(f"images[{i}]") for i in range(len(request.images)))


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(PLACES), values)
def test_any_value_anywhere_is_taken_or_refused_in_our_words(path: Any, value: object) -> None:
    send(with_value(FULL, path, value))


def test_each_type_at_each_field() -> None:
    for path in PLACES:
        for value in SAMPLES:
            send(with_value(FULL, path, value))


def test_a_field_that_is_missing() -> None:
    for path in PLACES:
        if path and isinstance(path[-1], str):
            copied: Any = copy.deepcopy(FULL)
            node = copied
            for key in path[:-1]:
                node = node[key]
            del node[path[-1]]
            send(copied)
