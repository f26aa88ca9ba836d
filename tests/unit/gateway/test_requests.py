"""Which requests pass, and how each refusal names its field."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from gateway.openai.options import MAX_BIAS_COUNT
from gateway.openai.requests import ChatCompletionRequest, parse_chat_request
from protos.errors import InvalidArgumentError
from tests.fakes import chat_body

PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk="}}


def parse(**fields: Any) -> ChatCompletionRequest:
    return parse_chat_request(json.dumps(chat_body(**fields)).encode())


def user(*parts: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": list(parts)}]}


def test_a_string_becomes_one_text_part() -> None:
    (message,) = parse().messages
    assert [part.text for part in message.content] == ["Hi"]


def test_unset_fields_stay_unset() -> None:
    request = parse()
    assert request.temperature is None
    assert request.max_tokens is None
    assert request.stop is None


@pytest.mark.parametrize("stop", ["\n", ["\n"]])
def test_stop_is_a_string_or_a_list(stop: object) -> None:
    assert parse(stop=stop).stop == ["\n"]


def test_usage_is_streamed_only_when_asked_for() -> None:
    assert not parse(stream=True).include_usage
    assert parse(stream=True, stream_options={"include_usage": True}).include_usage


def test_images_come_in_order_with_their_paths() -> None:
    text = {"type": "text", "text": "?"}
    messages = [
        {"role": "user", "content": [text, PICTURE]},
        {"role": "assistant", "content": "A cat."},
        {"role": "user", "content": [PICTURE]},
    ]
    params = [image.param for image in parse(messages=messages).images()]
    assert params == ["messages[0].content[1].image_url", "messages[2].content[0].image_url"]


@pytest.mark.parametrize("model", [{}, {"model": None}, {"model": ""}])
def test_no_model_is_an_empty_name(model: dict[str, Any]) -> None:
    body = {"messages": [{"role": "user", "content": "Hi"}], **model}
    assert parse_chat_request(json.dumps(body).encode()).model == ""


@pytest.mark.parametrize("name", ["max_tokens", "seed", "top_k", "n", "priority"])
def test_a_whole_number_may_have_a_point(name: str) -> None:
    value = getattr(parse(**{name: 2.0}), name)
    assert (value, type(value)) == (2, int)


def test_usage_in_each_chunk_needs_the_usage() -> None:
    both = {"include_usage": True, "continuous_usage_stats": True}
    assert parse(stream=True, stream_options=both).continuous_usage
    assert not parse(stream=True, stream_options={"continuous_usage_stats": True}).continuous_usage
    assert not parse(stream=True, stream_options={"include_usage": True}).continuous_usage
    assert not parse(stream=True).continuous_usage


@pytest.mark.parametrize(
    "fields",
    [
        {"top_logprobs": 0},
        {"response_format": {"type": "text"}},
        {"response_format": {}},
        {"structured_outputs": {}},
        {"logit_bias": {}},
        {"stream": None},
        {"stream_options": {"include_usage": False}},
        {"temperature": None},
        {"temperature": 0},
        {"seed": -(2**63)},
        {"seed": 2**64 - 1},
    ],
    ids=str,
)
def test_served_fields_that_ask_for_little_pass(fields: dict[str, Any]) -> None:
    assert parse(**fields).model == "scripted"


def test_an_assistant_message_comes_back_as_the_client_read_it() -> None:
    answer: dict[str, Any] = {
        "role": "assistant",
        "content": "A cat.",
        "refusal": None,
        "annotations": [],
        "audio": None,
        "function_call": None,
        "tool_calls": None,
        "parsed": {"animal": "cat"},
    }
    question = {"role": "user", "content": "Sure?"}
    assert len(parse(messages=[question, answer, question]).messages) == 3


def test_a_history_of_calls() -> None:
    messages = [
        HI,
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}},
                {"function": {"name": "g", "arguments": {"größe": 1}}},
                {"function": {"name": "h", "arguments": None}},
            ],
        },
        {"role": "tool", "tool_call_id": "1", "content": "sunny"},
        {"role": "tool", "content": [{"type": "text", "text": "warm"}]},
        {"role": "assistant", "function_call": {"name": "old", "arguments": "{}"}},
        {"role": "function", "name": "old", "content": None},
        HI,
    ]
    request = parse(messages=messages)
    calls = [(call.name, call.arguments) for call in request.messages[1].calls]
    assert calls == [("f", '{"a": 1}'), ("g", '{"größe": 1}'), ("h", "")]
    assert [call.name for call in request.messages[4].calls] == ["old"]
    assert [len(message.content) for message in request.messages] == [1, 0, 1, 1, 0, 0, 1]


def test_calls_are_those_of_the_assistant() -> None:
    calls = [{"function": {"name": "f"}}]
    (message,) = parse(messages=[{"role": "user", "content": "Hi", "tool_calls": calls}]).messages
    assert message.calls == []


@pytest.mark.parametrize("role", ["system", "developer", "user", "assistant", "tool", "function"])
def test_any_role_at_any_place(role: str) -> None:
    messages = [HI, {"role": role, "content": "a"}, HI, {"role": role, "content": "b"}]
    assert parse(messages=messages).messages[1].role == role


def test_parts_in_short_forms() -> None:
    parts = [
        "a",
        {"type": "refusal", "refusal": "no"},
        {"type": "thinking", "thinking": "hm", "signature": "x", "text": "t"},
        {"type": "reasoning", "image_url": "data:,"},
        {"type": "text", "text": "b", "cache_control": {"type": "ephemeral"}},
    ]
    (message,) = parse(messages=[{"role": "assistant", "content": parts}]).messages
    assert [part.text for part in message.content if part.is_read] == ["a", "no", "b"]
    assert [part.image for part in message.content] == [None] * 5


def test_an_image_may_be_its_url_alone() -> None:
    bare = {"type": "image_url", "image_url": "https://example.com/a.png"}
    images = list(parse(**user(bare, PICTURE)).images())
    assert images[0].source.url == "https://example.com/a.png"
    assert images[0].param_of("url") == "messages[0].content[0].image_url"
    assert images[1].param_of("url") == "messages[0].content[1].image_url.url"


ASSISTANT_LAST = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]


@pytest.mark.parametrize(
    ("fields", "param", "sentence"),
    [
        (
            {"messages": ASSISTANT_LAST, "add_generation_prompt": True},
            "continue_final_message",
            "the last message cannot both go on and be followed by a new turn",
        ),
        (
            {},
            "continue_final_message",
            "the last message is one of the user; only the assistant's can go on",
        ),
    ],
)
def test_endings_that_exclude_each_other(fields: dict[str, Any], param: str, sentence: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        parse(continue_final_message=True, **fields)
    assert (caught.value.field, caught.value.message) == (param, sentence)


HI = {"role": "user", "content": "Hi"}
SCHEMA = {"type": "object", "properties": {"größe": {"type": "integer"}}}
NAMED_SCHEMA = {"name": "size", "schema": SCHEMA}


def schema_format(json_schema: object) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": json_schema}}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model": 5}, "model"),
        ({"messages": "Hi"}, "messages"),
        ({"messages": [HI, {"role": "critic", "content": "Hi"}]}, "messages[1].role"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content"),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{"function": {}}]}]},
            "messages[0].tool_calls[0].function.name",
        ),
        (
            {"messages": [{"role": "assistant", "function_call": "auto"}]},
            "messages[0].function_call",
        ),
        ({"messages": [HI, {"content": "Hi"}]}, "messages[1].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"messages": [{"role": "system", "content": [PICTURE]}]}, "messages[0].content"),
        (user({"type": "text"}), "messages[0].content[0].text"),
        (user({"type": "text", "text": 5}), "messages[0].content[0].text"),
        (user({"type": "sound"}), "messages[0].content[0].type"),
        (user({"type": "image_url"}), "messages[0].content[0].image_url"),
        (user(PICTURE | {"text": "?"}), "messages[0].content[0].text"),
        (user({"type": "image_url", "image_url": {}}), "messages[0].content[0].image_url.url"),
        (
            user({"type": "image_url", "image_url": {"url": "x", "detail": "ultra"}}),
            "messages[0].content[0].image_url.detail",
        ),
        (
            user({"type": "image_url", "image_url": {"url": "x", "max_dynamic_patch": 0}}),
            "messages[0].content[0].image_url.max_dynamic_patch",
        ),
        ({"temperature": "hot"}, "temperature"),
        ({"max_tokens": 2**63}, "max_tokens"),
        ({"n": 2**31}, "n"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"max_tokens": 1, "max_completion_tokens": 2}, "max_tokens"),
        ({"seed": 2**64}, "seed"),
        ({"seed": -(2**63) - 1}, "seed"),
        ({"stop": [1]}, "stop[0]"),
        ({"stop_token_ids": ["a"]}, "stop_token_ids[0]"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"n": True}, "n"),
        ({"n": "2"}, "n"),
        ({"logprobs": 1}, "logprobs"),
        ({"logprobs": True, "top_logprobs": "3"}, "top_logprobs"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logprobs": False, "top_logprobs": 3}, "top_logprobs"),
        ({"logit_bias": [[5, 1]]}, "logit_bias"),
        ({"logit_bias": {"five": 1}}, "logit_bias.five"),
        ({"logit_bias": {"05": 1}}, "logit_bias.05"),
        ({"logit_bias": {"-5": 1}}, "logit_bias.-5"),
        ({"logit_bias": {"٥": 1}}, "logit_bias.٥"),
        ({"logit_bias": {"1234567890": 1}}, "logit_bias.1234567890"),
        ({"logit_bias": {"5": True}}, "logit_bias.5"),
        ({"logit_bias": {"5": "1"}}, "logit_bias.5"),
        ({"logit_bias": {"5": None}}, "logit_bias.5"),
        ({"logit_bias": {str(i): 1 for i in range(MAX_BIAS_COUNT + 1)}}, "logit_bias"),
        ({"response_format": "json_object"}, "response_format"),
        ({"response_format": {"name": "x"}}, "response_format.type"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        (
            {"response_format": {"type": "json_object", "json_schema": NAMED_SCHEMA}},
            "response_format.json_schema",
        ),
        (schema_format({"schema": {}}), "response_format.json_schema.name"),
        (schema_format({"name": "x"}), "response_format.json_schema.schema"),
        (schema_format(NAMED_SCHEMA | {"schema": "{}"}), "response_format.json_schema.schema"),
        (schema_format(NAMED_SCHEMA | {"schema": True}), "response_format.json_schema.schema"),
        (schema_format(NAMED_SCHEMA | {"strict": 1}), "response_format.json_schema.strict"),
        ({"structured_outputs": {"x": 1}}, "structured_outputs"),
        ({"structured_outputs": {"regex": "a", "grammar": "b"}}, "structured_outputs"),
        ({"structured_outputs": {"regex": 5}}, "structured_outputs.regex"),
        ({"structured_outputs": {"json": 5}}, "structured_outputs.json"),
        ({"structured_outputs": {"choice": "a"}}, "structured_outputs.choice"),
        ({"structured_outputs": {"choice": [1]}}, "structured_outputs.choice[0]"),
        ({"structured_outputs": {"choice": []}}, "structured_outputs"),
        ({"structured_outputs": {"choice": ["a"], "json_object": True}}, "structured_outputs"),
        ({"structured_outputs": {"json_object": False}}, "structured_outputs"),
        ({"guided_json": 5}, "guided_json"),
        ({"guided_regex": 5}, "guided_regex"),
        ({"guided_choice": ["a"] * 1025}, "guided_choice"),
        ({"guided_choice": ["a"], "guided_regex": "a"}, "guided_choice"),
        (
            {"guided_grammar": "start: /a/", "response_format": {"type": "json_object"}},
            "guided_grammar",
        ),
        ({"guided_json": {"a": 1}, "structured_outputs": {"json": {}}}, "guided_json"),
        ({"tools": {}}, "tools"),
        ({"tools": ["f"]}, "tools[0]"),
        ({"tools": [{"type": 5}]}, "tools[0].type"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"tools": [{"function": {}}]}, "tools[0].function.name"),
        ({"tools": [{"function": {"name": 5}}]}, "tools[0].function.name"),
        (
            {"tools": [{"function": {"name": "f", "parameters": []}}]},
            "tools[0].function.parameters",
        ),
        ({"tools": [{"function": {"name": "f"}}] * 1025}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": "any"}, "tool_choice"),
        ({"tool_choice": 5}, "tool_choice"),
        ({"tool_choice": {"type": "tool"}}, "tool_choice.type"),
        ({"tool_choice": {"type": "function"}}, "tool_choice.function"),
        ({"tool_choice": {"type": "function", "function": {}}}, "tool_choice.function.name"),
        ({"tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice"),
        ({"tool_choice": {"type": "allowed_tools"}}, "tool_choice.allowed_tools"),
        (
            {"tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto"}}},
            "tool_choice.allowed_tools.tools",
        ),
        (
            {
                "tool_choice": {
                    "type": "allowed_tools",
                    "allowed_tools": {"mode": "auto", "tools": []},
                }
            },
            "tool_choice.allowed_tools.tools",
        ),
        ({"parallel_tool_calls": 1}, "parallel_tool_calls"),
        ({"functions": [{}]}, "functions[0].name"),
        ({"function_call": {"name": "f"}}, "function_call"),
        ({"function_call": "required"}, "function_call"),
        (
            {"functions": [{"name": "f"}], "tools": [{"function": {"name": "g"}}]},
            "functions",
        ),
        (
            {
                "structured_outputs": {"regex": "a"},
                "response_format": {"type": "json_object"},
            },
            "structured_outputs",
        ),
        ({"priority": 1.5}, "priority"),
        ({"priority": -(2**31)}, "priority"),
        ({"cache_salt": 5}, "cache_salt"),
    ],
)
def test_a_refusal_names_the_path(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        parse(**fields)
    assert caught.value.field == param
    assert not caught.value.message[0].isupper()  # a sentence of ours, not pydantic's
    # Quoted are values, and names that this server does not know.
    assert not re.search(r"[A-Za-z]\w*[_.\[]\w", re.sub(r"'[^']*'", "", caught.value.message))


TEXT = {"type": "text", "text": "?"}


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        (
            {"stream_options": {"include_usage": True}},
            "options of a stream are given, but no stream is asked for",
        ),
        ({"messages": [{"role": "user"}]}, "a message's content is missing"),
        (
            {"messages": [{"role": "user", "content": None}]},
            "a message's content is null; it must be a string or a list of parts",
        ),
        (
            user({"type": "image_url", "image_url": 5}),
            "an image is 5; it must be a URL or an object with one",
        ),
        (
            user({"type": "image_url", "image_url": {"url": "x", "detail": "ultra" * 100}}),
            "an image's detail is '" + ("ultra" * 100)[:64] + "'; it must be 'auto', 'low', 'high'"
            " or 'original'",
        ),
        (
            {"response_format": {"type": "xml"}},
            "the type is 'xml'; it must be 'text', 'json_object' or 'json_schema'",
        ),
        ({"model": 5}, "the model's name is 5; it must be a string"),
        (
            {"messages": [HI] * 4097},
            "the list of messages has 4097 entries; it must have at most 4096",
        ),
        ({"messages": ["Hi"]}, "a message is a string; it must be an object"),
        (
            {"messages": [HI | {"role": "critic"}]},
            "a message's role is 'critic'; it must be 'system', 'developer', 'user', 'assistant',"
            " 'tool' or 'function'",
        ),
        (
            {"messages": [{"role": "system", "content": [PICTURE]}]},
            "a message of the system has 1 images; only a user's may have any: show them in one",
        ),
        (user({"type": "text"}), "a text part has no text"),
        (user({"type": "image_url"}), "an image part has no image"),
        (
            user(PICTURE | TEXT),
            "a part has a text and an image; it must have what its type says",
        ),
        (
            user({"type": "image_url", "image_url": {"url": "x", "max_dynamic_patch": 0}}),
            "the tile cap is 0; it must be at least 1",
        ),
        ({"top_p": "half"}, "top-p is a string; it must be a number"),
        (
            {"n": 2**31},
            "the number of choices is 2147483648; it must be below 2147483648",
        ),
        (
            {"max_tokens": 1, "max_completion_tokens": 2},
            "the output limit is given twice, as 1 and as 2 tokens",
        ),
        ({"stop": [5]}, "a stop string is 5; it must be a string"),
        ({"stop": 5}, "the stop strings are 5; they must be a string or a list of strings"),
        ({"stop_token_ids": [True]}, "a stop token is true; it must be a whole number"),
        ({"top_logprobs": 3}, "3 alternatives are asked for, but no log probabilities"),
        (
            {"logit_bias": {"five": 1}},
            "a token id is 'five'; it must be a whole number of at most 9 digits",
        ),
        ({"logit_bias": {"5": "1"}}, "a token's bias is a string; it must be a number"),
        (
            {"response_format": {"type": "json_schema"}},
            "a JSON Schema and the type 'json_schema' need each other",
        ),
        (schema_format({"name": "x"}), "the JSON Schema is missing"),
        (
            {"structured_outputs": {"json": None}},
            "the answer's form is given in 0 ways; it must be given in one",
        ),
    ],
)
def test_a_refusal_is_clear_without_its_path(fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        parse(**fields)
    assert caught.value.message == sentence


@pytest.mark.parametrize(
    ("body", "shown"), [(b"[]", "a list"), (b"5", "5"), (b"null", "null"), (b'""', "a string")]
)
def test_json_that_is_no_object_is_refused(body: bytes, shown: str) -> None:
    with pytest.raises(InvalidArgumentError, match=f"the body is {shown}; it must be an object"):
        parse_chat_request(body)


def test_refusals_hold_no_payload() -> None:
    secret = "data:image/png;base64,c2VjcmV0"
    for fields in (
        user({"type": "image_url", "image_url": [secret]}),
        user({"type": "image_url", "image_url": {"url": "x", "detail": [secret]}}),
        {"messages": secret},
        {"model": [secret]},
        {"temperature": secret},
    ):
        with pytest.raises(InvalidArgumentError) as caught:
            parse(**fields)
        assert "c2VjcmV0" not in caught.value.message


@pytest.mark.parametrize(("name", "value"), [("seed", 10**4000), ("n", 10**4000)])
def test_a_long_number_is_cut(name: str, value: object) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        parse(**{name: value})
    assert len(caught.value.message) < 300
    assert len(caught.value.field) <= 200


def test_a_schema_with_a_number_beyond_all_is_refused() -> None:
    """JSON has no word for infinity, so that it could not be handed on."""
    schema = b'{"type":"json_schema","json_schema":{"name":"x","schema":{"maximum":1e999}}}'
    body = b'{"messages":[{"role":"user","content":"Hi"}],"response_format":' + schema + b"}"
    with pytest.raises(InvalidArgumentError) as caught:
        parse_chat_request(body)
    assert caught.value.field == "response_format.json_schema.schema"
    assert caught.value.message == "a number is infinite; it must be at most 1.7e308"
