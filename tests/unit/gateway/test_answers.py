"""The whole answer of a stream, and what it costs to write."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from gateway.events import ChatEvent, Finished, TextDelta, TokenLogprob, Usage
from gateway.openai.answers import AnswerHead, StreamedAnswer, WholeAnswer


def test_choices_of_a_whole_answer_hold_what_their_events_did() -> None:
    answer = WholeAnswer(AnswerHead("a", 1, "m", "fp_0"), 2)
    likely = TokenLogprob("é".encode(), -0.5, (TokenLogprob(b"\xf0", -9e9),))
    events: list[ChatEvent] = [TextDelta(1, "q"), TextDelta(0, 'é"', (likely,)), TextDelta(0, "\n")]
    events += [Finished(0, "stop"), Finished(1, "length"), Usage(1, 2, 0, 0)]
    for event in events:
        answer.add(event)
    first, second = json.loads(answer.body())["choices"]
    assert first["message"]["content"] == 'é"\n'
    assert first["logprobs"]["content"] == [
        {
            "token": "é",
            "bytes": [195, 169],
            "logprob": -0.5,
            "top_logprobs": [{"token": "\\xf0", "bytes": [240], "logprob": -9999.0}],
        }
    ]
    assert (first["finish_reason"], second["finish_reason"]) == ("stop", "length")
    assert (second["index"], second["logprobs"]) == (1, None)


def test_log_probabilities_are_written_as_they_come() -> None:
    """All at the end would hold up everybody, for twice as long as the whole stream has taken."""
    answer = WholeAnswer(AnswerHead("a", 1, "m", "fp_0"), 1)
    top = tuple(TokenLogprob(b"other", -2.0) for _ in range(20))
    begin = time.thread_time()
    for _ in range(3000):
        answer.add(TextDelta(0, "x", (TokenLogprob(b"token", -0.5, top),)))
    answer.add(Finished(0, "stop"))
    answer.add(Usage(1, 1, 0, 0))
    adding_seconds = time.thread_time() - begin
    begin = time.thread_time()
    answer.body()
    assert time.thread_time() - begin < adding_seconds / 2


def chunks(data: bytes) -> list[Any]:
    """Returns the JSON of events."""
    return [json.loads(event.removeprefix("data: ")) for event in data.decode().split("\n\n")[:-1]]


def test_a_stream_may_say_in_each_chunk_what_all_choices_have_used() -> None:
    answer = StreamedAnswer(
        AnswerHead("a", 1, "m", "fp"), 2, include_usage=True, continuous_usage=True
    )
    events: list[ChatEvent] = [
        TextDelta(0, "q", token_count=2, prompt_token_count=7),
        TextDelta(1, "", token_count=1),  # a part of a character, which makes no chunk
        TextDelta(1, "é", token_count=1),
        Finished(1, "stop"),
        Usage(7, 4, 3, 0),
    ]
    *so_far, last = chunks(b"".join(map(answer.event, events)))
    assert [chunk["usage"]["prompt_tokens"] for chunk in so_far] == [7] * 5
    assert [chunk["usage"]["completion_tokens"] for chunk in so_far] == [0, 0, 2, 4, 4]
    assert [chunk["usage"]["total_tokens"] for chunk in so_far] == [7, 7, 9, 11, 11]
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == 4
    assert last["usage"]["prompt_tokens_details"]["cached_tokens"] == 3


@pytest.mark.parametrize(
    ("continuous", "first"),
    [
        (False, TextDelta(0, "q", token_count=1, prompt_token_count=7)),
        (True, TextDelta(0, "q", token_count=1)),  # of a service that does not say it yet
    ],
)
def test_what_was_not_asked_for_or_is_not_known_is_null(continuous: bool, first: TextDelta) -> None:
    answer = StreamedAnswer(
        AnswerHead("a", 1, "m", "fp"), 1, include_usage=True, continuous_usage=continuous
    )
    assert [chunk["usage"] for chunk in chunks(answer.event(first))] == [None, None]
