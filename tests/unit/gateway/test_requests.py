"""Which requests pass, and how each refusal names its field."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from gateway.openai.requests import MAX_BIAS_COUNT, ChatCompletionRequest, parse_chat_request
from protos.errors import InvalidArgumentError, UnsupportedFieldError
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


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n", 1),
        ("logprobs", False),
        ("top_logprobs", None),
        ("top_logprobs", 0),
        ("response_format", {"type": "text"}),
        ("response_format", None),
        ("tools", None),
        ("tools", []),
        ("tool_choice", "none"),
        ("store", False),
        ("service_tier", "auto"),
        ("modalities", ["text"]),
        ("logit_bias", {}),
        ("user", "somebody"),
        ("metadata", {"a": "b"}),
        ("stream", None),
        ("temperature", None),
        ("temperature", 0),
    ],
)
def test_values_that_ask_for_nothing_pass(name: str, value: object) -> None:
    assert parse(**{name: value}).model == "scripted"


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


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("audio", {"voice": "a", "format": "wav"}),
        ("function_call", "auto"),
        ("functions", [{"name": "f"}]),
        ("modalities", ["text", "audio"]),
        ("prediction", {"type": "content", "content": ""}),
        ("reasoning_effort", "high"),
        ("service_tier", "flex"),
        ("store", True),
        ("tool_choice", "required"),
        ("tools", [{"type": "function", "function": {"name": "f"}}]),
        ("verbosity", "low"),
        ("web_search_options", {}),
    ],
)
def test_what_openai_has_and_we_do_not_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(UnsupportedFieldError) as caught:
        parse(**{name: value})
    assert caught.value.field == name
    assert name in caught.value.message


def test_an_unsupported_field_of_a_message_is_refused_by_its_path() -> None:
    message = {"role": "assistant", "content": "", "tool_calls": [{"id": "1"}]}
    with pytest.raises(UnsupportedFieldError) as caught:
        parse(messages=[message])
    assert caught.value.field == "messages[0].tool_calls"


HI = {"role": "user", "content": "Hi"}
SCHEMA = {"type": "object", "properties": {"größe": {"type": "integer"}}}
NAMED_SCHEMA = {"name": "size", "schema": SCHEMA}


def schema_format(json_schema: object) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": json_schema}}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"frobnicate": 1}, "frobnicate"),
        ({"model": 5}, "model"),
        ({"messages": "Hi"}, "messages"),
        ({"messages": [HI, {"role": "tool", "content": "Hi"}]}, "messages[1].role"),
        ({"messages": [HI, {"content": "Hi"}]}, "messages[1].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "assistant", "content": None}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"messages": [{"role": "system", "content": [PICTURE]}]}, "messages[0].content"),
        ({"messages": [HI | {"mood": "good"}]}, "messages[0].mood"),
        (user({"type": "text"}), "messages[0].content[0].text"),
        (user({"type": "text", "text": 5}), "messages[0].content[0].text"),
        (user({"type": "input_audio"}), "messages[0].content[0].type"),
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
        ({"max_tokens": 2**31}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"max_tokens": 1, "max_completion_tokens": 2}, "max_tokens"),
        ({"seed": 2**63}, "seed"),
        ({"stop": [1]}, "stop[0]"),
        ({"stop_token_ids": ["a"]}, "stop_token_ids[0]"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"x": 1}}, "stream_options.x"),
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
        ({"response_format": {}}, "response_format.type"),
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
        (schema_format(NAMED_SCHEMA | {"x": 1}), "response_format.json_schema.x"),
        ({"structured_outputs": {}}, "structured_outputs"),
        ({"structured_outputs": {"regex": "a", "grammar": "b"}}, "structured_outputs"),
        ({"structured_outputs": {"regex": 5}}, "structured_outputs.regex"),
        ({"structured_outputs": {"json": 5}}, "structured_outputs.json"),
        ({"structured_outputs": {"choice": ["a"]}}, "structured_outputs.choice"),
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
    assert not re.search(r"\w[_.\[]\w", re.sub(r"'[^']*'", "", caught.value.message))


TEXT = {"type": "text", "text": "?"}


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"model": None}, "the model's name must be a string"),
        (
            {"messages": [HI] * 4097},
            "the list of messages has 4097 entries; it must have at most 4096",
        ),
        ({"messages": ["Hi"]}, "a message must be an object"),
        (
            {"messages": [HI | {"role": "tool"}]},
            "a message's role must be 'system', 'developer', 'user' or 'assistant'",
        ),
        (
            {"messages": [{"role": "system", "content": [PICTURE]}]},
            "a message of the system has 1 images; only a user's may have any",
        ),
        ({"messages": [HI | {"mood": "good"}]}, "this server does not know the field 'mood'"),
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
        ({"top_p": "half"}, "top-p must be a number"),
        (
            {"max_tokens": 2**31},
            "the most tokens to generate is 2147483648; it must be below 2147483648",
        ),
        (
            {"max_tokens": 1, "max_completion_tokens": 2},
            "the output limit is given twice, as 1 and as 2 tokens",
        ),
        ({"stop": [5]}, "a stop string must be a string"),
        ({"stop_token_ids": [True]}, "a stop token must be a whole number"),
        ({"top_logprobs": 3}, "3 alternatives are asked for, but no log probabilities"),
        (
            {"logit_bias": {"five": 1}},
            "a token id of the logit bias must be a whole number of at most 9 digits",
        ),
        ({"logit_bias": {"5": "1"}}, "a token's bias must be a number"),
        (
            {"response_format": {"type": "json_schema"}},
            "a JSON Schema and the type 'json_schema' need each other",
        ),
        (schema_format({"name": "x"}), "the JSON Schema is missing"),
        (
            {"structured_outputs": {}},
            "the answer's form is given in 0 ways; it must be given in one",
        ),
        ({"stream_options": {}}, "options of a stream are given, but no stream is asked for"),
        ({"store": True}, "this server does not support the field 'store'"),
    ],
)
def test_a_refusal_is_clear_without_its_path(fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        parse(**fields)
    assert caught.value.message == sentence


@pytest.mark.parametrize(
    "body", [b"", b"{", b"\xff", b'{"a": NaN}', b'{"a": "\\ud800"}', b"[" * 10_000]
)
def test_what_is_not_json_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidArgumentError, match="not valid JSON"):
        parse_chat_request(body)


@pytest.mark.parametrize("body", [b"[]", b"5", b"null"])
def test_json_that_is_no_object_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidArgumentError, match="the body must be an object"):
        parse_chat_request(body)


def test_refusals_hold_no_payload() -> None:
    secret = "data:image/png;base64,c2VjcmV0"
    for fields in (
        user({"type": "image_url", "image_url": secret}),
        {"messages": secret},
        {"model": [secret]},
        {"temperature": secret},
    ):
        with pytest.raises(InvalidArgumentError) as caught:
            parse(**fields)
        assert "c2VjcmV0" not in caught.value.message


@pytest.mark.parametrize(("name", "value"), [("x" * 10_000, 1), ("seed", 10**4000)])
def test_a_long_name_or_number_is_cut(name: str, value: object) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        parse(**{name: value})
    assert len(caught.value.message) < 300
    assert len(caught.value.field) <= 200
