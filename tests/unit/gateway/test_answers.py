"""The whole answer of a stream, and what it costs to write."""

from __future__ import annotations

import json
import time

from gateway.events import ChatEvent, Finished, TextDelta, TokenLogprob, Usage
from gateway.openai.answers import AnswerHead, WholeAnswer


def test_choices_of_a_whole_answer_hold_what_their_events_did() -> None:
    answer = WholeAnswer(AnswerHead("a", 1, "m", "fp_0", 2))
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
    answer = WholeAnswer(AnswerHead("a", 1, "m", "fp_0", 1))
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
