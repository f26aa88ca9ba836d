"""What is written of a response's events where they come in an unusual order, or do not come."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.events import ChatEvent, Finished, TextDelta, TokenLogprob, ToolCallDelta, Usage
from gateway.openai.answers import AnswerHead
from gateway.openai.responses_answers import StreamedResponse, WholeResponse
from protos.errors import (
    EngineDeadError,
    InvalidArgumentError,
    NotFoundError,
    OverloadedError,
    ServiceError,
)

HEAD = AnswerHead("abc", 1_700_000_000, "m", "fp_1")
ECHO = '{"instructions":null,"store":false}'
END = (Finished(0, "stop"), Usage(3, 2, 0, 0))


def token(text: str) -> TokenLogprob:
    return TokenLogprob(text.encode(), -0.5)


def events(*given: ChatEvent) -> list[dict[str, Any]]:
    writer = StreamedResponse(HEAD, ECHO)
    data = b"".join([*map(writer.event, given), writer.end()]).decode()
    return [json.loads(line[6:]) for line in data.splitlines() if line.startswith("data: ")]


def whole(*given: ChatEvent) -> dict[str, Any]:
    writer = WholeResponse(HEAD, ECHO)
    for event in given:
        writer.add(event)
    answer: dict[str, Any] = json.loads(writer.body())
    return answer


def tokens_of(item: dict[str, Any]) -> list[str]:
    return [logprob["token"] for part in item["content"] for logprob in part["logprobs"]]


def test_both_forms_end_alike() -> None:
    given = (TextDelta(0, "Hi"), TextDelta(0, "", tool_calls=(ToolCallDelta(0, "f", "{}"),)), *END)
    (response,) = [event["response"] for event in events(*given)[-1:]]
    answer = whole(*given)
    for one in (response, answer):
        for item in one["output"]:
            assert item.pop("id").startswith(("msg_", "fc_"))
            item.pop("call_id", None)
        one.pop("completed_at")
    assert response == answer
    assert list(answer)[:3] == ["id", "object", "created_at"]
    assert answer["id"] == "resp_abc"


def test_log_probabilities_before_the_text_wait_for_it() -> None:
    given = (
        TextDelta(0, "", (token("a"),)),
        TextDelta(0, "b", (token("b"),)),
        TextDelta(0, "", (token("<end>"),)),
        *END,
    )
    deltas = [event for event in events(*given) if event["type"] == "response.output_text.delta"]
    tokens = [[logprob["token"] for logprob in event["logprobs"]] for event in deltas]
    assert tokens == [["a", "b"], ["<end>"]]
    assert tokens_of(whole(*given)["output"][0]) == ["a", "b", "<end>"]


def test_log_probabilities_of_an_answer_without_text() -> None:
    given = (TextDelta(0, "", (token("<end>"),)), *END)
    kinds = [event["type"] for event in events(*given)]
    assert kinds.index("response.output_item.added") < kinds.index("response.output_text.delta")
    assert tokens_of(whole(*given)["output"][0]) == ["<end>"]


def test_log_probabilities_of_calls_have_no_place() -> None:
    piece = ToolCallDelta(0, "f", "{}")
    given = (
        TextDelta(0, "", (token("<tool_call>"),)),
        TextDelta(0, "", (token("{}"),), tool_calls=(piece,)),
        TextDelta(0, "", (token("<end>"),)),
        *END,
    )
    (call,) = whole(*given)["output"]
    assert call["type"] == "function_call"
    assert not [event for event in events(*given) if "logprobs" in event]


def test_several_calls_in_one_delta() -> None:
    pieces = (ToolCallDelta(0, "f", "{}"), ToolCallDelta(1, "g", ""), ToolCallDelta(1, "", "{}"))
    given = (TextDelta(0, "", tool_calls=pieces), *END)
    calls = [(call["name"], call["arguments"]) for call in whole(*given)["output"]]
    assert calls == [("f", "{}"), ("g", "{}")]
    written = events(*given)
    done = [event for event in written if event["type"] == "response.output_item.done"]
    assert [event["output_index"] for event in done] == [0, 1]
    assert [event["item"]["status"] for event in done] == ["completed"] * 2


def test_a_call_that_was_cut_is_incomplete() -> None:
    piece = ToolCallDelta(0, "f", '{"a')
    given = (TextDelta(0, "", tool_calls=(piece,)), Finished(0, "length"), Usage(3, 2, 0, 0))
    for answer in (whole(*given), events(*given)[-1]["response"]):
        (call,) = answer["output"]
        assert (answer["status"], call["status"]) == ("incomplete", "incomplete")
        assert call["arguments"] == '{"a'


def test_an_event_that_is_missing() -> None:
    with pytest.raises(ServiceError, match="left out the usage"):
        whole(TextDelta(0, "Hi"), Finished(0, "stop"))
    for form in (whole, events):
        with pytest.raises(ServiceError, match="did not finish the answer"):
            form(TextDelta(0, "Hi"), Usage(3, 2, 0, 0))


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (EngineDeadError("x"), "server_error"),
        (OverloadedError("x"), "rate_limit_exceeded"),
        (InvalidArgumentError("x", field="input"), "invalid_prompt"),
        (NotFoundError("x"), "invalid_prompt"),
    ],
)
def test_a_failed_response_has_one_of_the_known_codes(error: ServiceError, code: str) -> None:
    data = StreamedResponse(HEAD, ECHO).error(error).decode()
    *_, failed = [json.loads(line[6:]) for line in data.splitlines() if line[:5] == "data:"]
    assert failed["response"]["error"] == {"code": code, "message": error.message}


def test_a_call_that_fails_stays_incomplete_and_others_complete() -> None:
    writer = StreamedResponse(HEAD, ECHO)
    pieces = (ToolCallDelta(0, "f", "{}"), ToolCallDelta(1, "g", "{"))
    writer.event(TextDelta(0, "Hi", tool_calls=pieces))
    data = writer.error(EngineDeadError("x")).decode().splitlines()
    output = json.loads(data[-2].removeprefix("data: "))["response"]["output"]
    assert [item["status"] for item in output] == ["completed", "completed", "incomplete"]


def test_line_ends_of_other_kinds_are_escaped() -> None:
    writer = StreamedResponse(HEAD, ECHO)
    assert writer.event(TextDelta(0, "a\u2028b")).isascii()
