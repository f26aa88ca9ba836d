"""Requests of /v1/responses: how they become turns, and how an error's field is called."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.dialects.responses import ResponsesCall, parse
from gateway.generation import GenerationRequest
from gateway.services.messages import generate_start
from protos.errors import InvalidArgumentError, UnsupportedFieldError

PICTURE = {"type": "input_image", "image_url": "data:image/png;base64,aGk=", "detail": "low"}
TEXT = {"type": "input_text", "text": "What?"}
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
CLOSED = SCHEMA | {"additionalProperties": False}
TOOL = {"type": "function", "name": "f", "parameters": SCHEMA}
CALL = {"type": "function_call", "call_id": "c", "name": "f", "arguments": '{"a": 1}'}
OUTPUT = {"type": "function_call_output", "call_id": "c", "output": "sunny"}
ANSWER = {
    "type": "message",
    "id": "msg_1",
    "role": "assistant",
    "status": "completed",
    "content": [{"type": "output_text", "text": "Hello", "annotations": [], "logprobs": []}],
}
REASONING = {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "x"}


def call_of(*, strict: bool = False, **fields: Any) -> ResponsesCall:
    return parse(json.dumps({"input": "Hi", **fields}).encode(), strict)


def generation(**fields: Any) -> GenerationRequest:
    (request,) = call_of(**fields).generations
    return request


def refusal(*, strict: bool = False, **fields: Any) -> InvalidArgumentError:
    with pytest.raises(InvalidArgumentError) as caught:
        call_of(strict=strict, **fields)
    return caught.value


def turns(**fields: Any) -> list[tuple[str, list[Any], list[Any]]]:
    messages = generation(**fields).fields["chat.messages"]
    return [
        (turn["role"].removeprefix("ROLE_"), turn["parts"], turn["tool_calls"]) for turn in messages
    ]


def test_a_string_is_a_turn_of_the_user_and_instructions_come_first() -> None:
    assert turns() == [("USER", [{"text": "Hi"}], [])]
    assert turns(instructions="Be brief.")[0] == ("SYSTEM", [{"text": "Be brief."}], [])
    assert turns(instructions="") == turns(instructions=None) == turns()


def test_items_are_turns() -> None:
    items = [
        {"role": "developer", "content": "Be brief."},
        {"type": "message", "role": "user", "content": [PICTURE, TEXT]},
        ANSWER,
        {"role": "user", "content": "Sure?"},
    ]
    request = generation(input=items)
    assert turns(input=items) == [
        ("SYSTEM", [{"text": "Be brief."}], []),
        ("USER", [{"image": {}}, {"text": "What?"}], []),
        ("ASSISTANT", [{"text": "Hello"}], []),
        ("USER", [{"text": "Sure?"}], []),
    ]
    assert [image.source.detail for image in request.images] == ["low"]
    assert request.images_field == "input"


def test_calls_belong_to_the_turn_of_the_assistant_before_them() -> None:
    made = {"name": "f", "arguments": '{"a": 1}'}
    items = ["Hi", ANSWER, REASONING, CALL, CALL, OUTPUT, OUTPUT, REASONING, CALL, OUTPUT, ANSWER]
    items[0] = {"role": "user", "content": "Hi"}
    assert turns(input=items)[1:] == [
        ("ASSISTANT", [{"text": "Hello"}], [made, made]),
        ("TOOL", [{"text": "sunny"}], []),
        ("TOOL", [{"text": "sunny"}], []),
        ("ASSISTANT", [], [made]),
        ("TOOL", [{"text": "sunny"}], []),
        ("ASSISTANT", [{"text": "Hello"}], []),
    ]


def test_an_output_may_be_parts_and_an_answer_a_refusal() -> None:
    output = OUTPUT | {"output": [TEXT, {"type": "input_text", "text": "More."}]}
    refused = ANSWER | {"content": [{"type": "refusal", "refusal": "No."}]}
    assert [parts for _, parts, _ in turns(input=[output, refused])] == [
        [{"text": "What?"}, {"text": "More."}],
        [{"text": "No."}],
    ]


def test_a_tools_images_are_shown_in_a_turn_of_the_user_behind_its_output() -> None:
    shown = OUTPUT | {"output": [PICTURE, TEXT]}
    items = [CALL, CALL, shown, shown, ANSWER, CALL, shown]
    assert turns(input=items)[1:] == [
        ("TOOL", [{"text": "What?"}], []),
        ("TOOL", [{"text": "What?"}], []),
        ("USER", [{"image": {}}, {"image": {}}], []),
        ("ASSISTANT", [{"text": "Hello"}], [{"name": "f", "arguments": '{"a": 1}'}]),
        ("TOOL", [{"text": "What?"}], []),
        ("USER", [{"image": {}}], []),
    ]
    request = generation(input=items)
    places = [image.name_field("url") for image in request.images]
    assert places == [f"input[{index}].output[0].image_url" for index in (2, 3, 6)]
    assert request.name_field("chat.messages[3].parts[1].image") == places[1]


def test_what_was_said_does_not_go_on() -> None:
    assert generation(input=[ANSWER]).fields["chat.ending"] == "CHAT_ENDING_NEW_TURN"


def test_options() -> None:
    fields = generation(
        max_output_tokens=2**40,
        temperature=0.5,
        top_p=0.9,
        top_k=-1,
        seed=2**64 - 1,
        stop="end",
        priority=3,
        cache_salt="s",
        presence_penalty=0.1,
        frequency_penalty=0.2,
        repetition_penalty=1.1,
        min_p=0.1,
        ignore_eos=True,
        skip_special_tokens=False,
    ).fields
    assert (
        fields.items()
        >= {
            "stop.max_token_count": 2**31 - 1,
            "sampling.temperature": 0.5,
            "sampling.top_p": 0.9,
            "sampling.seed": -1,
            "priority": -3,
            "cache_salt": "s",
            "sampling.presence_penalty": 0.1,
            "sampling.frequency_penalty": 0.2,
            "sampling.repetition_penalty": 1.1,
            "sampling.min_p": 0.1,
            "stop.ignore_end_tokens": True,
            "skip_special_tokens": False,
        }.items()
    )
    assert fields["stop.strings"] == ["end"]
    assert "sampling.top_k" not in fields
    assert set(generation(temperature=None).fields) == {"chat.messages", "chat.ending"}
    generate_start(fields)


@pytest.mark.parametrize(
    ("fields", "top_count"),
    [
        ({}, None),
        ({"top_logprobs": 0}, None),
        ({"include": ["reasoning.encrypted_content"]}, None),
        ({"include": ["message.output_text.logprobs"]}, 0),
        ({"include": ["message.output_text.logprobs"], "top_logprobs": 3}, 3),
    ],
)
def test_log_probabilities_are_those_included(fields: dict[str, Any], top_count: int) -> None:
    assert generation(**fields).fields.get("logprobs.top_count") == top_count


def test_alternatives_without_log_probabilities() -> None:
    error = refusal(top_logprobs=3)
    assert error.field == "top_logprobs"
    assert "message.output_text.logprobs" in error.message


@pytest.mark.parametrize(
    ("choice", "guide"),
    [
        (None, {"choice": "TOOL_CHOICE_AUTO", "names": (), "single": False}),
        ("auto", {"choice": "TOOL_CHOICE_AUTO", "names": (), "single": False}),
        ("required", {"choice": "TOOL_CHOICE_REQUIRED", "names": (), "single": False}),
        (
            {"type": "function", "name": "f"},
            {"choice": "TOOL_CHOICE_REQUIRED", "names": ("f",), "single": True},
        ),
        (
            {
                "type": "allowed_tools",
                "mode": "auto",
                "tools": [{"type": "function", "name": "f"}],
            },
            {"choice": "TOOL_CHOICE_AUTO", "names": ("f",), "single": False},
        ),
    ],
)
def test_the_choice_of_tools(choice: Any, guide: dict[str, Any]) -> None:
    fields = generation(tools=[TOOL], tool_choice=choice).fields
    assert fields["guided.tool_calls"] == guide
    assert fields["chat.tools"] == [
        {"name": "f", "description": "", "parameters": json.dumps(SCHEMA), "strict": False}
    ]
    single = generation(tools=[TOOL], tool_choice=choice, parallel_tool_calls=False).fields
    assert single["guided.tool_calls"] == guide | {"single": True}
    generate_start(fields)


@pytest.mark.parametrize("fields", [{}, {"tools": []}, {"tools": [TOOL], "tool_choice": "none"}])
def test_without_tools_there_is_no_guide(fields: dict[str, Any]) -> None:
    assert set(generation(**fields).fields) == {"chat.messages", "chat.ending"}


def test_strict_closes_a_schema() -> None:
    (tool,) = generation(tools=[TOOL | {"strict": True}]).fields["chat.tools"]
    assert json.loads(tool["parameters"]) == CLOSED
    form = {"type": "json_schema", "name": "x", "schema": SCHEMA, "strict": True}
    fields = generation(text={"format": form}).fields
    assert json.loads(fields["guided.json_schema"]) == CLOSED


def test_forms() -> None:
    assert generation(text={"format": {"type": "json_object"}}).fields["guided.json_object"] == {}
    texts: list[Any] = [
        None,
        {},
        {"format": {"type": "text"}},
        {"format": None},
        {"verbosity": "low"},
    ]
    for text in texts:
        assert set(generation(text=text).fields) == {"chat.messages", "chat.ending"}


ITEMS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": [PICTURE, TEXT]},
    REASONING,
    ANSWER,
    CALL,
    CALL,
    OUTPUT,
    {"role": "user", "content": [PICTURE | {"max_dynamic_patch": 2}]},
]


@pytest.mark.parametrize(
    ("field", "param"),
    [
        ("chat.messages", "input"),
        ("chat.messages[0].parts[0].text", "instructions"),
        ("chat.messages[1].parts[0].text", "input[0].content"),
        ("chat.messages[2]", "input[1]"),
        ("chat.messages[2].parts", "input[1]"),
        ("chat.messages[2].parts[0].image", "input[1].content[0].image_url"),
        ("chat.messages[2].parts[1].text", "input[1].content[1].text"),
        ("chat.messages[3].parts[0].text", "input[3].content[0].text"),
        ("chat.messages[3].tool_calls[0].arguments", "input[4].arguments"),
        ("chat.messages[3].tool_calls[1].name", "input[5].name"),
        ("chat.messages[3].tool_calls", "input[3]"),
        ("chat.messages[4].parts[0].text", "input[6].output"),
        ("chat.messages[99].parts[0].text", "input"),
        ("images[0]", "input[1].content[0].image_url"),
        ("images[1]", "input[7].content[0].image_url"),
        ("images[2]", "input"),
        ("images", "input"),
        ("chat.tools[0].parameters.properties.a", "tools[0].parameters.properties.a"),
        ("guided.tool_calls.names", "tool_choice"),
        ("guided.json_schema.properties.a", "text.format.schema.properties.a"),
        ("sampling.temperature", "temperature"),
        ("stop.max_token_count", "max_output_tokens"),
        ("stop.strings[0]", "stop"),
        ("logprobs.top_count", "top_logprobs"),
        ("cache_salt", "cache_salt"),
        ("expected_checkpoint", ""),
    ],
)
def test_an_error_names_what_the_client_wrote(field: str, param: str) -> None:
    request = generation(
        instructions="You are an assistant.",
        input=ITEMS,
        tools=[TOOL],
        stop="x",
        include=["message.output_text.logprobs"],
        text={"format": {"type": "json_schema", "name": "x", "schema": SCHEMA}},
    )
    assert request.name_field(field) == param


def test_an_error_of_a_string() -> None:
    assert generation().name_field("chat.messages[0].parts[0].text") == "input"


def test_an_error_of_an_image() -> None:
    image = generation(input=ITEMS).images[1]
    assert image.name_field("url") == "input[7].content[0].image_url"
    assert image.name_field("max_dynamic_patch") == "input[7].content[0].max_dynamic_patch"


@pytest.mark.parametrize(
    ("fields", "param", "sentence"),
    [
        ({"input": 5}, "input", "the input is 5; it must be a string or a list of items"),
        ({"input": ["Hi"]}, "input[0]", "an item must be an object of the type 'message'"),
        ({"input": [{}]}, "input[0].role", "a message's role is missing"),
        (
            {"input": [{"role": "tool", "content": "x"}]},
            "input[0].role",
            "a message's role is 'tool'; it must be 'user', 'assistant', 'system' or 'developer'",
        ),
        ({"input": [{"role": "user"}]}, "input[0].content", "a message's content is missing"),
        (
            {"input": [OUTPUT | {"output": {"a": 1}}]},
            "input[0].output",
            "a tool's output is an object; it must be a string or a list of parts",
        ),
        (
            {"input": [{"role": "user", "content": [{"type": "input_text"}]}]},
            "input[0].content[0].text",
            "a text part has no text",
        ),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image"}]}]},
            "input[0].content[0].image_url",
            "an image part has no image",
        ),
        (
            {"input": [{"role": "assistant", "content": [PICTURE]}]},
            "input[0].content",
            "only a message of the user may have images: show them in one",
        ),
        (
            {"tool_choice": "f"},
            "tool_choice",
            "the choice of tools is 'f'; it must be 'none', 'auto' or 'required',"
            " or an object that names a tool",
        ),
        (
            {"tool_choice": {"type": "web_search"}},
            "tool_choice.type",
            "the type is 'web_search'; it must be",
        ),
        (
            {"tool_choice": {"type": "function"}},
            "tool_choice.name",
            "a choice of tools of the type 'function' needs 'name'",
        ),
        (
            {"tool_choice": {"type": "function", "name": "g"}, "tools": [TOOL]},
            "tool_choice",
            "the tool 'g' is chosen, but it is not among the tools",
        ),
        (
            {"tool_choice": "required"},
            "tool_choice",
            "a call of a tool is demanded, but no tools are given",
        ),
        (
            {"tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": []}},
            "tool_choice.tools",
            "the list of tools is empty",
        ),
        ({"tools": [{"type": "function"}]}, "tools[0].name", "the name of a function is missing"),
        (
            {"text": {"format": {"type": "json_schema", "name": "x"}}},
            "text.format.schema",
            "a JSON Schema and the type 'json_schema' need each other",
        ),
        ({"metadata": {"a": 1}}, "metadata.a", "a value of the metadata is 1; it must be a string"),
    ],
)
def test_a_malformed_field_is_named(fields: dict[str, Any], param: str, sentence: str) -> None:
    error = refusal(**fields)
    assert error.field == param
    assert error.message.startswith(sentence)


def test_a_number_that_no_answer_could_repeat() -> None:
    tool = '{"type": "function", "name": "f", "output_schema": {"maximum": 1e999}}'
    with pytest.raises(InvalidArgumentError, match="a number is infinite"):
        parse(f'{{"input": "Hi", "tools": [{tool}]}}'.encode(), False)


def test_the_input_is_needed() -> None:
    with pytest.raises(InvalidArgumentError, match="the input is missing"):
        parse(b"{}", False)
    with pytest.raises(InvalidArgumentError, match="the body is a list"):
        parse(b"[]", False)


@pytest.mark.parametrize(
    ("fields", "param", "way_on"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id", "nothing is stored here"),
        ({"conversation": "conv_1"}, "conversation", "send the whole conversation in 'input'"),
        ({"background": True}, "background", "the answer is sent to who asks"),
        ({"prompt": {"id": "pmpt_1"}}, "prompt", "send its text in 'instructions' and 'input'"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type", "run it yourself"),
        (
            {"tools": [{"type": "custom", "name": "x"}]},
            "tools[0].type",
            "one parameter is a string",
        ),
        (
            {"tools": [{"type": "function", "function": {"name": "f"}}]},
            "tools[0].function",
            "put its fields beside 'type'",
        ),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type", "the item itself"),
        ({"input": [{"type": "web_search_call"}]}, "input[0].type", "put what it says into"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_file"}]}]},
            "input[0].content[0].type",
            "one picture a page",
        ),
        (
            {"input": [OUTPUT | {"output": [TEXT, {"type": "text", "text": "x"}]}]},
            "input[0].output[1].type",
            "'input_text'",
        ),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "f"}]}]},
            "input[0].content[0].file_id",
            "send the picture in 'image_url'",
        ),
        ({"max_tokens": 5}, "max_tokens", "use 'max_output_tokens'"),
        (
            {"stream_options": {"include_obfuscation": True}},
            "stream_options.include_obfuscation",
            "",
        ),
        ({"text": {"format": {"json_schema": {}, "type": "x"}}}, "text.format.type", ""),
        (
            {"text": {"format": {"json_schema": {"a": 1}}}},
            "text.format.json_schema",
            "beside 'type'",
        ),
    ],
)
def test_what_is_not_served_is_refused_with_a_way_on(
    fields: dict[str, Any], param: str, way_on: str
) -> None:
    error = refusal(**fields)
    assert error.field == param
    assert way_on in error.message
    assert isinstance(error, UnsupportedFieldError) or not way_on


@pytest.mark.parametrize(
    "fields",
    [
        {"store": True},
        {"store": False, "previous_response_id": None, "conversation": None, "background": False},
        {"reasoning": {"effort": "high"}, "service_tier": "auto", "text": {"verbosity": "low"}},
        {"truncation": "auto"},
        {"truncation": "disabled"},
        {"include": ["reasoning.encrypted_content", "message.input_image.image_url"]},
        {"tools": [{"type": "web_search"}], "tool_choice": "none"},
        {"stream": True, "stream_options": {"include_obfuscation": False}},
        {"input": [{"role": "user", "content": [PICTURE | {"file_id": None}]}]},
        {"user": "u", "safety_identifier": "s", "prompt_cache_key": "k", "metadata": {"a": "b"}},
        {"max_tool_calls": 5, "prompt_cache_retention": "24h"},
        {"input": [ANSWER | {"phase": "final_answer", "mood": 1}]},
    ],
    ids=str,
)
def test_what_clients_send_by_default_passes(fields: dict[str, Any]) -> None:
    assert call_of(strict=True, **fields).ignored_fields is None


def test_unknown_fields_are_named() -> None:
    fields: dict[str, Any] = {
        "wizardry": 1,
        "text": {"mood": 1},
        "tools": [TOOL | {"spell": 1}],
        "input": [{"role": "user", "content": "Hi", "mood": 1}],
    }
    assert call_of(**fields).ignored_fields == "wizardry, text.mood, tools[0].spell"
    assert refusal(strict=True, **fields).field == "wizardry"


def echo(**fields: Any) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(call_of(**fields).echo)
    return answer


def test_the_echo_has_defaults() -> None:
    assert echo() == {
        "background": False,
        "frequency_penalty": 0,
        "instructions": None,
        "max_output_tokens": None,
        "max_tool_calls": None,
        "metadata": {},
        "parallel_tool_calls": True,
        "presence_penalty": 0,
        "previous_response_id": None,
        "prompt_cache_key": None,
        "reasoning": {"effort": None, "summary": None},
        "safety_identifier": None,
        "service_tier": "default",
        "store": False,
        "temperature": 0,
        "text": {"format": {"type": "text"}},
        "tool_choice": "auto",
        "tools": [],
        "top_logprobs": 0,
        "top_p": 1,
        "truncation": "disabled",
        "user": None,
    }


def test_the_echo_repeats_what_was_asked_for_and_says_what_is_done() -> None:
    fields: dict[str, Any] = {
        "instructions": "Be brief.\u2028",
        "metadata": {"a": "b"},
        "parallel_tool_calls": False,
        "temperature": 0.5,
        "text": {"format": {"type": "json_object"}, "verbosity": "low"},
        "tool_choice": {"type": "function", "name": "f"},
        "top_p": 0.5,
        "user": "u",
        "max_output_tokens": 5,
    }
    tool = TOOL | {"strict": True}
    answer = echo(
        **fields, tools=[tool], store=True, truncation="auto", reasoning={"effort": "low"}
    )
    assert answer.items() >= fields.items()
    assert answer["tools"] == [tool | {"description": None, "parameters": CLOSED}]
    assert (answer["store"], answer["truncation"]) == (False, "disabled")
    assert answer["reasoning"] == {"effort": None, "summary": None}
    assert call_of(**fields, tools=[tool]).echo.isascii()
