"""Anthropic's answers and errors, written from an answer's events."""

from __future__ import annotations

import json
from typing import Any

import pytest
from aiohttp import web

from gateway.anthropic.answers import StreamedMessage, WholeMessage
from gateway.anthropic.errors import error_body
from gateway.events import ChatEvent, Finished, TextDelta, ToolCallDelta, Usage
from gateway.openai.answers import AnswerHead
from gateway.openai.errors import HTTPRefusalError
from protos.errors import (
    AccessDeniedError,
    DeadlineError,
    InvalidArgumentError,
    NotFoundError,
    OverloadedError,
    ServiceError,
    UnauthenticatedError,
    UnavailableError,
)

HEAD = AnswerHead("r", 1, "m", "fp_0")
USAGE = Usage(30, 5, 16, 0)
COUNTS = {
    "input_tokens": 14,
    "cache_creation_input_tokens": 0,
    "cache_read_input_tokens": 16,
    "output_tokens": 5,
}


def whole(*events: ChatEvent) -> Any:
    answer = WholeMessage(HEAD)
    for event in events:
        answer.add(event)
    return json.loads(answer.body(), parse_constant=pytest.fail)


def streamed(*events: ChatEvent) -> list[Any]:
    """Returns the data of a stream's events, whose names are in their lines and in the data."""
    answer = StreamedMessage(HEAD)
    data = b"".join(answer.event(event) for event in events) + answer.end()
    found = []
    for event in data.decode().removesuffix("\n\n").split("\n\n"):
        name, written = event.split("\n")
        found.append(json.loads(written.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}"
    return found


def piece(index: int, name: str, arguments: str) -> TextDelta:
    return TextDelta(0, "", tool_calls=(ToolCallDelta(index, name, arguments),))


CALLS: list[ChatEvent] = [
    TextDelta(0, "He\u2028", prompt_token_count=30),
    TextDelta(0, ""),
    TextDelta(0, "llo", tool_calls=(ToolCallDelta(0, "look", '{"a"'),)),
    piece(0, "", ": 1e999}"),
    piece(1, "count", ""),
    piece(1, "", "{}"),
    Finished(0, "stop"),
    USAGE,
]


def test_a_whole_message() -> None:
    message = whole(*CALLS)
    ids = [block.pop("id") for block in message["content"][1:]]
    assert len(set(ids)) == 2
    assert all(call_id.startswith("toolu_") for call_id in ids)
    assert message == {
        "id": "msg_r",
        "type": "message",
        "role": "assistant",
        "model": "m",
        "content": [
            {"type": "text", "text": "He\u2028llo"},
            {"type": "tool_use", "name": "look", "input": {"a": float("inf")}},  # as JSON has it
            {"type": "tool_use", "name": "count", "input": {}},
        ],
        "stop_reason": "tool_use",
        "stop_sequence": None,
        "usage": COUNTS,
    }


def test_the_events_of_a_stream() -> None:
    start, ping, *blocks, ending, stop = streamed(*CALLS)
    assert start["message"]["content"] == []
    assert start["message"]["stop_reason"] is None
    assert start["message"]["usage"]["input_tokens"] == 30
    assert ping == {"type": "ping"}
    ids = [event["content_block"].pop("id", None) for event in blocks if "content_block" in event]
    assert ids[0] is None
    assert len(set(ids)) == 3

    def begin(index: int, **block: Any) -> dict[str, Any]:
        return {"type": "content_block_start", "index": index, "content_block": block}

    def delta(index: int, kind: str, **delta: str) -> dict[str, Any]:
        return {"type": "content_block_delta", "index": index, "delta": {"type": kind, **delta}}

    def end(index: int) -> dict[str, Any]:
        return {"type": "content_block_stop", "index": index}

    assert blocks == [
        begin(0, type="text", text=""),
        delta(0, "text_delta", text="He\u2028"),
        delta(0, "text_delta", text="llo"),
        end(0),
        begin(1, type="tool_use", name="look", input={}),
        delta(1, "input_json_delta", partial_json='{"a"'),
        delta(1, "input_json_delta", partial_json=": 1e999}"),
        end(1),
        begin(2, type="tool_use", name="count", input={}),
        delta(2, "input_json_delta", partial_json="{}"),
        end(2),
    ]
    assert ending == {
        "type": "message_delta",
        "delta": {"stop_reason": "tool_use", "stop_sequence": None},
        "usage": COUNTS,
    }
    assert stop == {"type": "message_stop"}


def test_a_line_in_the_text_is_no_line_of_the_stream() -> None:
    answer = StreamedMessage(HEAD)
    assert "\u2028" not in answer.event(TextDelta(0, "a\u2028\n")).decode()


def test_an_empty_answer_has_no_blocks() -> None:
    events: list[ChatEvent] = [TextDelta(0, ""), Finished(0, "stop"), USAGE]
    assert whole(*events)["content"] == []
    assert [event["type"] for event in streamed(*events)] == [
        "message_start",
        "ping",
        "message_delta",
        "message_stop",
    ]


@pytest.mark.parametrize(
    ("finished", "called", "reason"),
    [
        (Finished(0, "stop"), False, "end_turn"),
        (Finished(0, "stop", "END"), False, "stop_sequence"),
        (Finished(0, "length"), False, "max_tokens"),
        (Finished(0, "stop"), True, "tool_use"),
        (Finished(0, "length"), True, "max_tokens"),
    ],
)
def test_why_a_message_ended(finished: Finished, called: bool, reason: str) -> None:
    calls = [piece(0, "look", "{}")] if called else []
    stop = {"stop_reason": reason, "stop_sequence": finished.stop_string}
    message = whole(*calls, finished, USAGE)
    assert {name: message[name] for name in stop} == stop
    assert streamed(*calls, finished, USAGE)[-2]["delta"] == stop


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ('{"a": [1, 2', {"a": [1, 2]}),
        ('{"a": "b', {}),
        ('{"a', {}),
        ("", {}),
        ('{"a": ' * 300, {}),
        ('{"a": ' + "1" * 5000, {}),
        ('{"a": 1e999, "b": ', {}),
    ],
)
def test_of_a_call_that_was_cut_what_is_whole_is_told(arguments: str, expected: Any) -> None:
    message = whole(piece(0, "look", arguments), Finished(0, "length"), USAGE)
    assert message["content"][0]["input"] == expected


@pytest.mark.parametrize("arguments", ['{"a":' * 300 + "1" + "}" * 300, r'{"a":"\ud83d"}'])
def test_a_whole_call_is_told_as_it_came(arguments: str) -> None:
    answer = WholeMessage(HEAD)
    for event in (piece(0, "look", arguments), Finished(0, "stop"), USAGE):
        answer.add(event)
    assert f'"input":{arguments}}}' in answer.body().decode()


@pytest.mark.parametrize("missing", [0, 1])
def test_an_answer_without_its_end_is_an_error(missing: int) -> None:
    events: list[ChatEvent] = [Finished(0, "stop"), USAGE]
    del events[missing]
    with pytest.raises(ServiceError, match="left out the end"):
        whole(*events)


def test_a_stream_without_its_end_is_an_error() -> None:
    with pytest.raises(ServiceError, match="left out the end"):
        streamed(USAGE)


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (
            InvalidArgumentError("x", field="messages[0].content[12].source.data"),
            "invalid_request_error",
            "messages.0.content.12.source.data: x",
        ),
        (InvalidArgumentError("x"), "invalid_request_error", "x"),
        (UnauthenticatedError("x"), "authentication_error", "x"),
        (AccessDeniedError("x"), "permission_error", "x"),
        (NotFoundError("x", field="model"), "not_found_error", "model: x"),
        (OverloadedError("x"), "rate_limit_error", "x"),
        (UnavailableError("x"), "overloaded_error", "x"),
        (DeadlineError("x"), "timeout_error", "x"),
        (ServiceError("x"), "api_error", "x"),
        (HTTPRefusalError(web.HTTPMethodNotAllowed("GET", []), "x"), "invalid_request_error", "x"),
        (HTTPRefusalError(web.HTTPRequestTimeout(text="x")), "timeout_error", "x"),
        (HTTPRefusalError(web.HTTPRequestEntityTooLarge(1, 2, text="x")), "request_too_large", "x"),
    ],
)
def test_an_error(error: ServiceError, kind: str, message: str) -> None:
    body = {
        "type": "error",
        "error": {"type": kind, "message": message},
        "request_id": "r",
    }
    assert error_body(error, "r") == body
    event = f"event: error\ndata: {json.dumps(body, separators=(',', ':'))}\n\n"
    assert StreamedMessage(HEAD).error(error).decode() == event
