"""Text completions as they are written: echoes, log probabilities, offsets, streams."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest

from gateway.events import ChatEvent, Finished, PromptLogprobs, TextDelta, TokenLogprob, Usage
from gateway.openai.answers import AnswerHead
from gateway.openai.completion_answers import (
    CompletionForm,
    StreamedCompletion,
    WholeCompletion,
)
from protos.errors import ServiceError

HEAD = AnswerHead("r", 1_700_000_000, "m", "fp_1")
USAGE = Usage(5, 3, 2, 0)
FIRST = TokenLogprob(b"On", 0.0)


def token(text: bytes, logprob: float = -0.5, *top: tuple[bytes, float]) -> TokenLogprob:
    return TokenLogprob(text, logprob, tuple(TokenLogprob(*entry) for entry in top))


def written(form: CompletionForm, events: Sequence[ChatEvent]) -> dict[str, Any]:
    """Returns the whole answer, and makes sure that the stream holds the same choices."""
    whole = WholeCompletion(HEAD, form)
    for event in events:
        whole.add(event)
    answer: dict[str, Any] = json.loads(whole.body())
    assert joined(chunks(form, events, include_usage=True)) == answer["choices"]
    return answer


def chunks(
    form: CompletionForm, events: Sequence[ChatEvent], *, include_usage: bool = False, **more: Any
) -> list[dict[str, Any]]:
    stream = StreamedCompletion(HEAD, form, include_usage=include_usage, **more)
    lines = b"".join(map(stream.event, events)).decode().split("\n\n")
    return [json.loads(line.removeprefix("data: ")) for line in lines if line]


def joined(stream: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the choices that the chunks of a stream make up."""
    choices: dict[int, dict[str, Any]] = {}
    for chunk in stream:
        for piece in chunk["choices"]:
            index = piece["index"]
            empty = {"index": index, "text": "", "logprobs": None, "finish_reason": None}
            choice = choices.setdefault(index, empty)
            assert choice["finish_reason"] is None, "nothing follows the finish"
            choice["text"] += piece["text"]
            choice["finish_reason"] = piece["finish_reason"]
            if piece["logprobs"]:
                columns = choice["logprobs"] or {name: [] for name in piece["logprobs"]}
                choice["logprobs"] = {
                    name: columns[name] + piece["logprobs"][name] for name in columns
                }
    return [choices[index] for index in sorted(choices)]


def answer_events(index: int = 0, text: str = "a", **delta: Any) -> list[ChatEvent]:
    return [TextDelta(index, text, **delta), Finished(index, "stop")]


def test_a_plain_completion() -> None:
    deltas = [TextDelta(0, text) for text in ("Hel", "", "lo")]
    events: list[ChatEvent] = [*deltas, Finished(0, "stop"), USAGE]
    assert written(CompletionForm(1, [""]), events) == {
        "id": "cmpl-r",
        "object": "text_completion",
        "created": 1_700_000_000,
        "model": "m",
        "system_fingerprint": "fp_1",
        "choices": [{"index": 0, "text": "Hello", "logprobs": None, "finish_reason": "stop"}],
        "usage": {
            "prompt_tokens": 5,
            "completion_tokens": 3,
            "total_tokens": 8,
            "prompt_tokens_details": {"cached_tokens": 2, "image_tokens": 0},
        },
    }


def test_each_choice_of_each_prompt_has_its_echo() -> None:
    events: list[ChatEvent] = [PromptLogprobs((token(b"<s>"), token(b"!")), index=2)]
    for index in (3, 1, 0, 2):
        events += answer_events(index, f"a{index}")
    answer = written(CompletionForm(2, ["Once ", None]), [*events, USAGE])
    texts = [choice["text"] for choice in answer["choices"]]
    assert texts == ["Once a0", "Once a1", "<s>!a2", "<s>!a3"]
    assert [choice["logprobs"] for choice in answer["choices"]] == [None] * 4


def test_log_probabilities_of_prompt_and_answer() -> None:
    prompt = [FIRST, token(b"ce", -1.5, (b"ly", -0.25), (b"ce", -1.5))]
    delta = token(b" up", -float("inf"), (b" a", -0.125))
    events = [
        PromptLogprobs(tuple(prompt[:1])),
        PromptLogprobs(tuple(prompt[1:])),
        *answer_events(text=" up", logprobs=(delta,)),
        USAGE,
    ]
    (choice,) = written(CompletionForm(1, ["Once"], has_logprobs=True), events)["choices"]
    assert choice["text"] == "Once up"
    assert choice["logprobs"] == {
        "tokens": ["On", "ce", " up"],
        "token_logprobs": [None, -1.5, -9999.0],
        "top_logprobs": [None, {"ly": -0.25, "ce": -1.5}, {" a": -0.125, " up": -9999.0}],
        "text_offset": [0, 2, 4],
    }


@pytest.mark.parametrize(
    ("logprobs", "top"),
    [
        (token(b"\xf0", -2.0, (b"\xf0", -1.0)), {"\\xf0": -1.0}),
        (token(b"x", -1.0, (b"x", -1.0), (b"y", -2.0), (b"x", -3.0)), {"x": -1.0, "y": -2.0}),
        (token(b"x", -4.0), {"x": -4.0}),
    ],
)
def test_of_equal_texts_the_best_stays(logprobs: TokenLogprob, top: dict[str, float]) -> None:
    events = [*answer_events(logprobs=(logprobs,)), USAGE]
    (choice,) = written(CompletionForm(1, [""], has_logprobs=True), events)["choices"]
    assert choice["logprobs"]["top_logprobs"] == [top]


@pytest.mark.parametrize(
    ("text", "tokens", "offsets"),
    [
        ("Once", [b"<s>", b"On", b"ce"], [0, 0, 2]),
        ("Once", [b"<s>", b" On", b"ce"], [0, 0, 2]),
        (" Once", [b" On", b"ce"], [0, 3]),
        ("é😀a", [b"\xc3", b"\xa9", b"\xf0\x9f", b"\x98\x80", b"a"], [0, 0, 1, 1, 2]),
        ("<s>", [b"<s>", b"<s>"], [0, 3]),
        (None, [b"<s>", b" On", b"ce"], [0, 3, 6]),
        (None, [b"\xf0\x9f", b"\x98\x80", b"a"], [0, 0, 1]),
    ],
)
def test_offsets_count_characters_of_the_text(
    text: str | None, tokens: list[bytes], offsets: list[int]
) -> None:
    events = [
        PromptLogprobs(tuple(map(token, tokens))),
        *answer_events(text="z", logprobs=(token(b"z"),)),
        USAGE,
    ]
    (choice,) = written(CompletionForm(1, [text], has_logprobs=True), events)["choices"]
    found = choice["logprobs"]["text_offset"]
    assert found[:-1] == offsets
    assert choice["text"][found[-1] :] == "z"


def test_an_echo_alone_leaves_the_token_out() -> None:
    events = [
        PromptLogprobs((FIRST,)),
        *answer_events(text="x", logprobs=(token(b"x"),), token_count=1, prompt_token_count=5),
        Usage(5, 1, 2, 0),
    ]
    form = CompletionForm(1, ["On"], has_logprobs=True, is_echo_alone=True)
    answer = written(form, events)
    (choice,) = answer["choices"]
    assert (choice["text"], choice["finish_reason"]) == ("On", "length")
    assert choice["logprobs"]["tokens"] == ["On"]
    assert answer["usage"]["completion_tokens"] == 0
    assert answer["usage"]["total_tokens"] == 5
    stream = chunks(form, events, include_usage=True, continuous_usage=True)
    assert {chunk["usage"]["completion_tokens"] for chunk in stream} == {0}


def test_a_stream_counts_the_tokens_of_all_prompts() -> None:
    deltas = [
        TextDelta(0, "a", token_count=1, prompt_token_count=5),
        TextDelta(1, "b", token_count=2, prompt_token_count=7),
    ]
    stream = chunks(CompletionForm(1, ["", ""]), deltas, include_usage=True, continuous_usage=True)
    assert [chunk["usage"]["total_tokens"] for chunk in stream] == [6, 15]


@pytest.mark.parametrize("include", [True, False])
def test_the_usage_is_a_chunk_of_its_own(include: bool) -> None:
    events = [*answer_events(), USAGE]
    stream = chunks(CompletionForm(1, [""]), events, include_usage=include)
    assert [chunk.get("usage", "none") for chunk in stream[:2]] == [None if include else "none"] * 2
    last = [(chunk["choices"], chunk["usage"]["total_tokens"]) for chunk in stream[2:]]
    assert last == ([([], 8)] if include else [])


def test_how_streams_end() -> None:
    stream = StreamedCompletion(HEAD, CompletionForm(1, [""]), include_usage=False)
    assert stream.end() == b"data: [DONE]\n\n"
    error = json.loads(stream.error(ServiceError("lost")).removeprefix(b"data: "))
    assert error["error"]["message"] == "lost"


@pytest.mark.parametrize(
    "events",
    [
        [*answer_events()],
        [USAGE],
        [TextDelta(0, "a"), USAGE],
        [*answer_events(1), USAGE],
    ],
)
def test_an_answer_with_gaps_is_an_error(events: list[ChatEvent]) -> None:
    whole = WholeCompletion(HEAD, CompletionForm(1, ["", ""]))
    for event in events:
        whole.add(event)
    with pytest.raises(ServiceError):
        whole.body()
