"""Which requests pass, and how each refusal names its field."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.schema import ChatCompletionRequest, parse_chat_request
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
        ("response_format", {"type": "text"}),
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
    }
    question = {"role": "user", "content": "Sure?"}
    assert len(parse(messages=[question, answer, question]).messages) == 3


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("audio", {"voice": "a", "format": "wav"}),
        ("function_call", "auto"),
        ("functions", [{"name": "f"}]),
        ("logit_bias", {"5": 1}),
        ("logprobs", True),
        ("modalities", ["text", "audio"]),
        ("n", 2),
        ("prediction", {"type": "content", "content": ""}),
        ("reasoning_effort", "high"),
        ("response_format", {"type": "json_object"}),
        ("service_tier", "flex"),
        ("store", True),
        ("tool_choice", "required"),
        ("tools", [{"type": "function", "function": {"name": "f"}}]),
        ("top_logprobs", 3),
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
        ("embedding_header.spec.dtype", ""),
        ("", ""),
    ],
)
def test_a_field_of_the_contract_becomes_a_path_of_the_request(field: str, param: str) -> None:
    assert parse(max_completion_tokens=1, **user(PICTURE)).param_of(field) == param


def test_the_output_limit_is_named_as_the_client_named_it() -> None:
    assert parse(max_tokens=1).param_of("stop.max_token_count") == "max_tokens"
