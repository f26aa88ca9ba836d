"""A ledger that cannot fail proves nothing: it catches each thing that must not happen."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.chaos.ledger import (
    Ending,
    Exchange,
    Expectation,
    Ledger,
    Outage,
    Trouble,
    ViolationError,
    judge,
)
from tests.e2e.questions import Question

QUESTION = Question("count", "en", "How many cats?", "There are two cats.")
RIGHT = "there are two cats"
USAGE = {"prompt_tokens": 9, "completion_tokens": 5, "total_tokens": 14}
ERROR = {"message": "the LLM service is unavailable", "type": "server_error", "param": None}
TYPED = {"error": {**ERROR, "code": "service_unavailable"}}
DONE = b"data: [DONE]\n\n"


def event(document: Any) -> bytes:
    return b"data: " + json.dumps(document).encode() + b"\n\n"


def chunk(text: str | None, reason: str | None = None, index: int = 0) -> bytes:
    choice = {"index": index, "delta": {"content": text}, "finish_reason": reason}
    return event({"choices": [choice], "usage": None})


USAGE_CHUNK = event({"choices": [], "usage": USAGE})
BEGINNING = chunk("") + chunk("There are ")
FINISHED = BEGINNING + chunk("two cats.") + chunk(None, "stop")
WHOLE_STREAM = FINISHED + USAGE_CHUNK + DONE


def streamed(body: bytes, **seen: Any) -> Exchange:
    expected = Expectation(QUESTION, stream=True)
    return Exchange(7, "a test", expected, status=200, body=bytearray(body), **seen)


def answered(text: str = RIGHT, reason: str = "stop", choice_count: int = 1, **more: Any) -> bytes:
    message = {"role": "assistant", "content": text}
    choices = [
        {"index": index, "message": message, "finish_reason": reason}
        for index in range(choice_count)
    ]
    document = {"object": "chat.completion", "choices": choices, "usage": USAGE} | more
    return json.dumps(document).encode()


def whole(body: bytes, status: int = 200) -> Exchange:
    return Exchange(7, "a test", Expectation(QUESTION), status=status, body=bytearray(body))


@pytest.mark.parametrize(
    ("exchange", "ending"),
    [
        (streamed(WHOLE_STREAM), Ending.WHOLE),
        (streamed(b": keep-alive\n\n" + WHOLE_STREAM), Ending.WHOLE),
        (streamed(BEGINNING + event(TYPED)), Ending.ERROR_EVENT),
        (streamed(BEGINNING, left=True), Ending.LEFT),
        (whole(answered()), Ending.WHOLE),
        (whole(json.dumps(TYPED).encode(), status=503), Ending.ERROR_STATUS),
    ],
)
def test_the_endings_that_may_be(exchange: Exchange, ending: Ending) -> None:
    assert judge(exchange) is ending


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (b"", "silent cut"),
        (DONE, "usage"),
        (BEGINNING, "silent cut"),
        (FINISHED + USAGE_CHUNK, "silent cut"),
        (WHOLE_STREAM[:-5], "silent cut within an event"),
        (BEGINNING + USAGE_CHUNK + DONE, "not all with stop"),
        (FINISHED + DONE, "usage"),
        (FINISHED + USAGE_CHUNK + USAGE_CHUNK + DONE, "usage"),
        (WHOLE_STREAM + DONE, "exactly one"),
        (WHOLE_STREAM + event(TYPED) + DONE, "second ending"),
        (BEGINNING + event(TYPED) + DONE, "second ending"),
        (BEGINNING + event(TYPED) + event(TYPED), "second ending"),
        (FINISHED + chunk("!") + USAGE_CHUNK + DONE, "goes on after its finish"),
        (BEGINNING + event({"error": "no"}), "untyped"),
        (chunk("A dog") + event(TYPED), "wrong before it failed"),
        (chunk("There are three cats.") + chunk("", "stop") + USAGE_CHUNK + DONE, "wrong"),
        (chunk(RIGHT) + chunk("", "length") + USAGE_CHUNK + DONE, "not all with stop"),
        (FINISHED + chunk(RIGHT, "stop", index=1) + USAGE_CHUNK + DONE, "choices"),
        (b": ping\n\n" + WHOLE_STREAM, "no event"),
        (b"data: {\n\n" + WHOLE_STREAM, "not JSON"),
    ],
)
def test_streams_that_must_not_be(body: bytes, sentence: str) -> None:
    with pytest.raises(ViolationError, match=sentence):
        judge(streamed(body))


@pytest.mark.parametrize(
    ("exchange", "sentence"),
    [
        (whole(answered("There are three cats.")), "wrong"),
        (whole(answered(reason="length")), "not all with stop"),
        (whole(answered(usage=None)), "usage"),
        (whole(answered(choice_count=2)), "choices"),
        (whole(answered(object="list")), "no chat.completion"),
        (whole(answered()[:-9]), "not JSON"),
        (whole(b"<h1>Bad Gateway</h1>", status=502), "not JSON"),
        (whole(b"[]", status=500), "not an object"),
        (whole(b'{"error": {"message": "no"}}', status=500), "untyped"),
        (
            whole(json.dumps({"error": {**ERROR, "code": "server_error"}}).encode(), status=500),
            "a bug",
        ),
        (Exchange(7, "a test", Expectation(QUESTION)), "without an answer"),
        (streamed(BEGINNING, hung=True), "hung"),
    ],
)
def test_answers_that_must_not_be(exchange: Exchange, sentence: str) -> None:
    with pytest.raises(ViolationError, match=sentence):
        judge(exchange)


def begun(ledger: Ledger, number: int = 1, **seen: Any) -> Exchange:
    exchange = ledger.begin(number, "a test", Expectation(QUESTION, stream=True))
    for name, value in seen.items():
        setattr(exchange, name, value)
    return exchange


def test_one_ending_each_passes() -> None:
    ledger = Ledger(seed=3)
    assert ledger.end(begun(ledger, status=200, body=bytearray(WHOLE_STREAM))) is Ending.WHOLE
    assert ledger.end(begun(ledger, 2, left=True)) is Ending.LEFT
    ledger.check()
    assert ledger.counts() == {Ending.WHOLE: 1, Ending.LEFT: 1}


def test_no_ending_fails_with_seed_and_history() -> None:
    ledger = Ledger(seed=3)
    begun(ledger, 41).note("sent")
    with pytest.raises(ViolationError, match=r"(?s)CHAOS_SEED=3.*no ending.*request 41.*sent"):
        ledger.check()


def test_a_second_ending_fails() -> None:
    ledger = Ledger(seed=3)
    exchange = begun(ledger, left=True)
    ledger.end(exchange)
    ledger.end(exchange)
    with pytest.raises(ViolationError, match="a second ending"):
        ledger.check()


def test_a_broken_connection_needs_the_gateways_end() -> None:
    ledger = Ledger(seed=3)
    assert ledger.end(begun(ledger, broken="reset")) is None
    ledger.outages.append(Outage(by_kill=True))
    assert ledger.end(begun(ledger, 2, broken="reset")) is Ending.BROKEN
    with pytest.raises(ViolationError, match="1 violations(?s:.*)the connection broke"):
        ledger.check()


@pytest.mark.parametrize(
    ("by_kill", "began", "status", "is_excused"),
    [
        (True, 5.0, 200, True),
        (True, 15.0, None, True),
        (True, 25.0, None, False),
        (False, 15.0, None, True),
        (False, 15.0, 200, False),
        (False, 5.0, None, False),
    ],
)
def test_what_an_end_of_the_gateway_excuses(
    by_kill: bool, began: float, status: int | None, is_excused: bool
) -> None:
    """It is killed, or terminated, at 10, and serves again at 20."""
    exchange = streamed(BEGINNING, began=began, ended=began + 6, broken="reset")
    exchange.status = status
    assert Outage(by_kill, start=10.0, end=20.0).excuses(exchange) is is_excused


def failing(ledger: Ledger, number: int = 1, **seen: Any) -> Exchange:
    """Ends a request with an error event."""
    exchange = begun(ledger, number, status=200, body=bytearray(BEGINNING + event(TYPED)), **seen)
    assert ledger.end(exchange) is Ending.ERROR_EVENT
    return exchange


@pytest.mark.parametrize(
    ("about", "is_excused"),
    [
        ({}, True),
        ({"request_ids": {"chaos-1"}}, True),
        ({"request_ids": {"chaos-2"}}, False),
        ({"request_ids": set()}, False),
        ({"gateway": "here"}, True),
        ({"gateway": "there"}, False),
        ({"end": 0.0}, False),
        ({"start": float("inf")}, False),
    ],
)
def test_an_error_needs_a_fault_that_its_request_has_met(
    about: dict[str, Any], is_excused: bool
) -> None:
    ledger = Ledger(seed=3)
    ledger.troubles.append(Trouble("kill -9 llm", **{"start": 0.0} | about))
    failing(ledger, gateway="here")
    ledger.check_failures()
    if is_excused:
        ledger.check()
    else:
        with pytest.raises(ViolationError, match="nothing had been done"):
            ledger.check()


def test_nobody_listens_only_after_an_end_of_the_gateway() -> None:
    ledger = Ledger(seed=3)
    ledger.never_sent(begun(ledger))
    with pytest.raises(ViolationError, match="nobody listens"):
        ledger.check()


def test_nobody_listens_only_after_an_end_of_all_gateways() -> None:
    ledger = Ledger(seed=3, gateway_count=2)
    ledger.outages.append(Outage(by_kill=True, gateway="one"))
    assert not ledger.never_sent(begun(ledger))
    ledger.outages.append(Outage(by_kill=True, gateway="two"))
    assert ledger.never_sent(begun(ledger, 2))


def test_an_end_of_one_gateway_excuses_nothing_at_another() -> None:
    outage = Outage(by_kill=True, gateway="one", start=10.0, end=20.0)
    exchange = streamed(BEGINNING, began=15.0, ended=16.0, broken="reset", gateway="two")
    assert not outage.excuses(exchange)
