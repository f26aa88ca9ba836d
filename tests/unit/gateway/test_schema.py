"""Which requests pass, and how each refusal names its field."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.schema import ChatCompletionRequest, Guide, parse_chat_request
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
    assert request.output_token_limit is None
    assert request.stop is None


@pytest.mark.parametrize("stop", ["\n", ["\n"]])
def test_stop_is_a_string_or_a_list(stop: object) -> None:
    assert parse(stop=stop).stop == ["\n"]


def test_either_name_limits_the_output() -> None:
    assert parse(max_tokens=5).output_token_limit == 5
    assert parse(max_completion_tokens=6).output_token_limit == 6
    assert parse(max_completion_tokens=6, max_tokens=6).output_token_limit == 6


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
        ({"messages": []}, "messages"),
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
        ({"logit_bias": {str(i): 1 for i in range(1025)}}, "logit_bias"),
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
    assert caught.value.message.startswith(f"{param}: ")


@pytest.mark.parametrize(
    "body", [b"", b"{", b"\xff", b'{"a": NaN}', b'{"a": "\\ud800"}', b"[" * 10_000]
)
def test_what_is_not_json_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidArgumentError, match="not valid JSON"):
        parse_chat_request(body)


@pytest.mark.parametrize("body", [b"[]", b"5", b"null"])
def test_json_that_is_no_object_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidArgumentError, match="the body: "):
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


def test_a_long_unknown_name_is_cut() -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        parse(**{"x" * 10_000: 1})
    assert len(caught.value.message) < 300


@pytest.mark.parametrize(
    ("field", "param"),
    [
        ("sampling.top_p", "top_p"),
        ("stop.max_token_count", "max_completion_tokens"),
        ("stop.min_token_count", "min_tokens"),
        ("stop.strings[1]", "stop"),
        ("stop.token_ids", "stop_token_ids"),
        ("stop.ignore_end_tokens", "ignore_eos"),
        ("images[0]", "messages[0].content[0].image_url"),
        ("images[0].content_sha256", "messages[0].content[0].image_url"),
        ("images[7]", "messages"),
        ("images", "messages"),
        ("chat.messages[0].role", "messages[0].role"),
        ("chat.messages[0].parts[1].text", "messages[0].content[1].text"),
        ("messages[0].content", "messages[0].content"),
        ("messages[0].content[0].image_url.url", "messages[0].content[0].image_url.url"),
        ("choice_count", "n"),
        ("logprobs.top_count", "top_logprobs"),
        ("sampling.logit_bias", "logit_bias"),
        ("sampling.logit_bias[1].token_id", "logit_bias.7"),
        ("priority", "priority"),
        ("cache_salt", "cache_salt"),
        ("guided.json_schema", ""),
        ("embedding_header.spec.dtype", ""),
        ("", ""),
    ],
)
def test_a_field_of_the_contract_becomes_a_path_of_the_request(field: str, param: str) -> None:
    biases = {"5": 1, "7": 1}
    request = parse(max_completion_tokens=1, logit_bias=biases, **user(PICTURE))
    assert request.param_of(field) == param


JSON_SCHEMA = json.dumps(SCHEMA, ensure_ascii=False)


@pytest.mark.parametrize(
    ("fields", "guide"),
    [
        ({}, None),
        ({"response_format": {"type": "text"}}, None),
        (
            {"response_format": {"type": "json_object"}},
            Guide("json_object", "", "response_format"),
        ),
        (
            schema_format(NAMED_SCHEMA | {"strict": True, "description": "How large"}),
            Guide("json_schema", JSON_SCHEMA, "response_format.json_schema.schema"),
        ),
        (
            {"structured_outputs": {"json": SCHEMA}, "response_format": {"type": "text"}},
            Guide("json_schema", JSON_SCHEMA, "structured_outputs.json"),
        ),
        (
            {"structured_outputs": {"json": "{}"}},
            Guide("json_schema", "{}", "structured_outputs.json"),
        ),
        (
            {"structured_outputs": {"regex": "a+", "json": None}},
            Guide("regex", "a+", "structured_outputs.regex"),
        ),
        (
            {"structured_outputs": {"grammar": 'start: "a"'}},
            Guide("grammar", 'start: "a"', "structured_outputs.grammar"),
        ),
    ],
)
def test_a_format_is_a_guide(fields: dict[str, Any], guide: Guide | None) -> None:
    request = parse(**fields)
    assert request.guide == guide
    if guide:
        assert request.param_of(f"guided.{guide.kind}") == guide.param


def test_the_output_limit_is_named_as_the_client_named_it() -> None:
    assert parse(max_tokens=1).param_of("stop.max_token_count") == "max_tokens"
