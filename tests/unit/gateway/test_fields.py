"""The table of options, both ways: what a request sets, and how an error's field is called."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.fields import CHAT, image_options
from gateway.openai.requests import ChatCompletionRequest, ImageURL, parse_chat_request
from tests.fakes import chat_body

PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk="}}
TEXT = {"type": "text", "text": "?"}
SCHEMA = {"type": "object", "properties": {"größe": {"type": "integer"}}}
JSON_SCHEMA = json.dumps(SCHEMA, ensure_ascii=False)


def parse(**fields: Any) -> ChatCompletionRequest:
    return parse_chat_request(json.dumps(chat_body(**fields)).encode())


def user(*parts: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": list(parts)}]}


def param_of(request: ChatCompletionRequest, field: str) -> str:
    return CHAT.param_of(request, field)


def test_what_is_unset_stays_unset() -> None:
    assert set(CHAT.values(parse())) == {"chat.messages"}
    fields = CHAT.values(parse(top_p=None, logprobs=False, top_logprobs=0))
    assert set(fields) == {"chat.messages"}


def test_either_name_limits_the_output() -> None:
    for fields in (
        {"max_tokens": 6},
        {"max_completion_tokens": 6},
        {"max_completion_tokens": 6, "max_tokens": 6},
    ):
        assert CHAT.values(parse(**fields))["stop.max_token_count"] == 6


@pytest.mark.parametrize(
    ("fields", "field", "value"),
    [
        ({"seed": 2**63 - 1}, "sampling.seed", 2**63 - 1),
        ({"seed": 2**63}, "sampling.seed", -(2**63)),
        ({"seed": 2**64 - 1}, "sampling.seed", -1),
        ({"seed": -1}, "sampling.seed", -1),
        ({"top_k": -1}, "sampling.top_k", None),
        ({"top_k": 0}, "sampling.top_k", None),
        ({"top_k": 1}, "sampling.top_k", 1),
        ({"top_k": -2}, "sampling.top_k", -2),
        ({"top_p": 0}, "sampling.top_p", 0),
        ({"max_tokens": 2**40}, "stop.max_token_count", 2**31 - 1),
        ({"max_completion_tokens": -1}, "stop.max_token_count", None),
        ({"max_tokens": 0}, "stop.max_token_count", 0),
    ],
)
def test_a_value_goes_over_as_the_contract_has_it(
    fields: dict[str, Any], field: str, value: object
) -> None:
    assert CHAT.values(parse(**fields)).get(field) == value


HELLO = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]


@pytest.mark.parametrize(
    ("fields", "ending", "param"),
    [
        ({}, None, "continue_final_message"),
        ({"continue_final_message": True}, "CONTINUED", "continue_final_message"),
        ({"continue_final_message": False}, "NEW_TURN", "continue_final_message"),
        ({"add_generation_prompt": True}, "NEW_TURN", "add_generation_prompt"),
        ({"add_generation_prompt": False}, "CLOSED", "add_generation_prompt"),
        (
            {"add_generation_prompt": False, "continue_final_message": True},
            "CONTINUED",
            "continue_final_message",
        ),
        (
            {"add_generation_prompt": False, "continue_final_message": False},
            "CLOSED",
            "add_generation_prompt",
        ),
    ],
)
def test_how_a_conversation_ends(fields: dict[str, Any], ending: str | None, param: str) -> None:
    request = parse(messages=HELLO, **fields)
    expected = ending and f"CHAT_ENDING_{ending}"
    assert CHAT.values(request).get("chat.ending") == expected
    assert param_of(request, "chat.ending") == param


CALLS = {
    "role": "assistant",
    "content": [
        {"type": "thinking", "thinking": "hm"},
        {"type": "text", "text": "a"},
        {"type": "text", "text": "b"},
    ],
    "tool_calls": [
        {"id": "1", "type": "function", "function": {"name": "f", "arguments": {"a": 1}}},
        {"id": "2", "type": "function", "function": {"name": "g", "arguments": "[]"}},
    ],
    "function_call": {"name": "old"},
}


def test_a_history_of_calls_goes_over() -> None:
    result = {"role": "function", "name": "old", "content": "sunny"}
    turns = CHAT.values(parse(messages=[CALLS, result]))["chat.messages"]
    assert turns == [
        {
            "role": "ROLE_ASSISTANT",
            "parts": [{"text": "a"}, {"text": "b"}],
            "tool_calls": [
                {"name": "f", "arguments": '{"a": 1}'},
                {"name": "g", "arguments": "[]"},
                {"name": "old", "arguments": ""},
            ],
        },
        {"role": "ROLE_TOOL", "parts": [{"text": "sunny"}]},
    ]


@pytest.mark.parametrize(
    ("field", "param"),
    [
        ("chat.messages[0].tool_calls[1].name", "messages[0].tool_calls[1].function.name"),
        (
            "chat.messages[0].tool_calls[0].arguments",
            "messages[0].tool_calls[0].function.arguments",
        ),
        ("chat.messages[0].tool_calls[2].name", "messages[0].function_call.name"),
        ("chat.messages[0].tool_calls", "messages[0].tool_calls"),
        ("chat.messages[0].parts[0].text", "messages[0].content[1].text"),
        ("chat.messages[0].parts[1]", "messages[0].content[2]"),
        ("chat.messages[0].parts[7]", "messages[0].content[7]"),
    ],
)
def test_a_place_in_a_history_of_calls(field: str, param: str) -> None:
    assert param_of(parse(messages=[CALLS]), field) == param


@pytest.mark.parametrize(
    ("field", "param"),
    [
        ("sampling.top_p", "top_p"),
        ("stop.max_token_count", "max_completion_tokens"),
        ("stop.min_token_count", "min_tokens"),
        ("stop.strings[1]", "stop[1]"),
        ("stop.strings", "stop"),
        ("stop.token_ids", "stop_token_ids"),
        ("stop.token_ids[0]", "stop_token_ids[0]"),
        ("stop.ignore_end_tokens", "ignore_eos"),
        ("images[0]", "messages[0].content[0].image_url"),
        ("images[0].content_sha256", "messages[0].content[0].image_url"),
        ("images[1]", "messages[0].content[2].image_url"),
        ("images[7]", "messages"),
        ("images", "messages"),
        ("chat.messages", "messages"),
        ("chat.messages[0].role", "messages[0].role"),
        ("chat.messages[9].role", "messages[9].role"),
        ("chat.messages[0].parts", "messages[0].content"),
        ("chat.messages[0].parts[1].text", "messages[0].content[1].text"),
        ("chat.messages[0].parts[2].image", "messages[0].content[2].image_url"),
        ("choice_count", "n"),
        ("logprobs.top_count", "top_logprobs"),
        ("sampling.logit_bias", "logit_bias"),
        ("sampling.logit_bias[1]", "logit_bias.7"),
        ("sampling.logit_bias[1].token_id", "logit_bias.7"),
        ("sampling.logit_bias[9].token_id", "logit_bias"),
        ("priority", "priority"),
        ("cache_salt", "cache_salt"),
        ("guided.regex", "structured_outputs.regex"),
        ("embedding_header.spec.dtype", ""),
        ("request_id", ""),
        ("text", ""),
        ("", ""),
    ],
)
def test_a_field_of_the_contract_becomes_a_path_of_the_request(field: str, param: str) -> None:
    request = parse(
        max_completion_tokens=1,
        logit_bias={"5": 1, "7": 1},
        stop=["a", "b"],
        **user(PICTURE, TEXT, PICTURE),
    )
    assert param_of(request, field) == param


def test_the_output_limit_is_called_as_the_client_called_it() -> None:
    assert param_of(parse(max_tokens=1), "stop.max_token_count") == "max_tokens"


@pytest.mark.parametrize("stop", ["", [""]])
def test_a_lone_stop_string_may_have_no_list(stop: object) -> None:
    assert param_of(parse(stop=stop), "stop.strings[0]") == "stop"


def test_a_lone_text_may_have_no_part() -> None:
    assert param_of(parse(), "chat.messages[0].parts[0].text") == "messages[0].content"


@pytest.mark.parametrize(
    ("body", "field", "value", "param"),
    [
        (
            {"response_format": {"type": "json_object"}},
            "guided.json_object",
            {},
            "response_format",
        ),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {
                        "name": "size",
                        "schema": SCHEMA,
                        "strict": False,
                        "description": "How large",
                    },
                }
            },
            "guided.json_schema",
            JSON_SCHEMA,
            "response_format.json_schema.schema",
        ),
        (
            {"structured_outputs": {"json": SCHEMA}, "response_format": {"type": "text"}},
            "guided.json_schema",
            JSON_SCHEMA,
            "structured_outputs.json",
        ),
        (
            {"structured_outputs": {"json": "{}"}},
            "guided.json_schema",
            "{}",
            "structured_outputs.json",
        ),
        (
            {"structured_outputs": {"regex": "a+", "json": None}},
            "guided.regex",
            "a+",
            "structured_outputs.regex",
        ),
        (
            {"structured_outputs": {"grammar": 'start: "a"'}},
            "guided.grammar",
            'start: "a"',
            "structured_outputs.grammar",
        ),
    ],
)
def test_a_format_is_a_guide(body: dict[str, Any], field: str, value: object, param: str) -> None:
    request = parse(**body)
    guides = {
        path: guide for path, guide in CHAT.values(request).items() if path.startswith("guided.")
    }
    assert guides == {field: value}
    assert param_of(request, field) == param


@pytest.mark.parametrize("fields", [{}, {"response_format": {"type": "text"}}])
def test_any_text_is_no_guide(fields: dict[str, Any]) -> None:
    assert not [path for path in CHAT.values(parse(**fields)) if path.startswith("guided")]


@pytest.mark.parametrize(
    ("image", "cap", "param"),
    [
        ({}, None, "max_dynamic_patch"),
        ({"detail": "auto"}, None, "max_dynamic_patch"),
        ({"detail": "low"}, 1, "detail"),
        ({"detail": "high"}, 24, "detail"),
        ({"detail": "original"}, 24, "detail"),
        ({"detail": "high", "max_dynamic_patch": 6}, 6, "max_dynamic_patch"),
    ],
)
def test_a_tile_cap_is_a_number_or_a_detail(
    image: dict[str, Any], cap: int | None, param: str
) -> None:
    options, source = image_options(24), ImageURL(url="x", **image)
    assert options.values(source).get("max_tile_count") == cap
    assert options.param_of(source, "max_tile_count") == param
    assert options.param_of(source, "image") == "url"
    assert options.param_of(source, "expected_recipe_sha256") == ""


def test_a_place_in_a_schema_is_one_in_the_request() -> None:
    body = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}
    field = "guided.json_schema.properties.tags.uniqueItems"
    assert param_of(parse(response_format=body), field) == (
        "response_format.json_schema.schema.properties.tags.uniqueItems"
    )
    assert param_of(parse(structured_outputs={"json": SCHEMA}), field) == (
        "structured_outputs.json.properties.tags.uniqueItems"
    )


def test_images_that_tools_returned_are_shown_behind_their_turns() -> None:
    other = PICTURE | {"image_url": {"url": "data:image/png;base64,aGg="}}
    messages = [
        {"role": "user", "content": "Look."},
        {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "see"}}]},
        {"role": "tool", "content": [TEXT, PICTURE]},
        {"role": "tool", "content": [other]},
        {"role": "user", "content": [TEXT, PICTURE]},
    ]
    request = parse(messages=messages)
    turns = CHAT.values(request)["chat.messages"]
    assert [turn["role"].removeprefix("ROLE_") for turn in turns] == [
        *("USER", "ASSISTANT", "TOOL", "TOOL", "USER", "USER")
    ]
    assert [turn["parts"] for turn in turns[2:]] == [
        [{"text": "?"}],
        [],
        [{"image": {}}, {"image": {}}],
        [{"text": "?"}, {"image": {}}],
    ]
    assert [image.param for image in request.images()] == [
        "messages[2].content[1].image_url",
        "messages[3].content[0].image_url",
        "messages[4].content[1].image_url",
    ]
    for field, param in {
        "chat.messages[2].parts[0].text": "messages[2].content[0].text",
        "chat.messages[4].parts[1]": "messages[3].content[0]",
        "chat.messages[5].parts[1].image": "messages[4].content[1].image_url",
        "chat.messages[5].parts": "messages[4].content",
        "images[1]": "messages[3].content[0].image_url",
    }.items():
        assert param_of(request, field) == param
