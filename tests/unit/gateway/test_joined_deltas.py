"""An answer is the same in every dialect, however many tokens its deltas hold."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import pytest

from gateway.anthropic.answers import StreamedMessage, WholeMessage
from gateway.events import ChatEvent, Finished, TextDelta, TokenLogprob, ToolCallDelta, Usage
from gateway.openai.answers import AnswerHead, StreamedAnswer, WholeAnswer
from gateway.openai.completion_answers import (
    CompletionForm,
    StreamedCompletion,
    WholeCompletion,
)
from gateway.openai.responses_answers import StreamedResponse, WholeResponse
from gateway.tools import CallIds

HEAD = AnswerHead("r", 1_700_000_000, "m", "fp_1")
BY_CHANCE = ("id", "completed_at")
ECHO = '{"instructions":null}'
USAGE = Usage(30, 5, 16, 0)
FORM = CompletionForm(1, ["echo"], has_logprobs=True)
# What is said in pieces. Of all else the streams may hold more or less.
SAID = ("content", "text", "partial_json", "arguments", "delta")
LISTED = ("token", "tokens", "logprob", "token_logprobs", "text_offset", "finish_reason", "name")


class Whole(Protocol):
    def add(self, event: ChatEvent) -> None: ...

    def body(self) -> bytes: ...


class Streamed(Protocol):
    def event(self, event: ChatEvent) -> bytes: ...

    def end(self) -> bytes: ...


def delta(text: str, *calls: ToolCallDelta, tokens: Sequence[bytes] = ()) -> TextDelta:
    logprobs = tuple(TokenLogprob(token, -1.0, (TokenLogprob(token, -1.0),)) for token in tokens)
    return TextDelta(0, text, logprobs, len(tokens) or 1, tool_calls=calls)


TEXT = (
    [delta("Th", tokens=[b"Th"]), delta("", tokens=[b"\xc3"]), delta("é\n", tokens=[b"\xa9\n"])],
    delta("Thé\n", tokens=[b"Th", b"\xc3", b"\xa9\n"]),
)
CALLS = (
    [
        delta("So: "),
        delta("", ToolCallDelta(0, "weather", "")),
        delta("", ToolCallDelta(0, "", '{"a":')),
        delta("", ToolCallDelta(0, "", "1}")),
        delta("", ToolCallDelta(1, "time", "{}")),
    ],
    delta("So: ", ToolCallDelta(0, "weather", '{"a":1}'), ToolCallDelta(1, "time", "{}")),
)
END: Sequence[ChatEvent] = (Finished(0, "stop"), USAGE)
WHOLE: dict[str, Callable[[], Whole]] = {
    "chat": lambda: WholeAnswer(HEAD, 1),
    "completions": lambda: WholeCompletion(HEAD, FORM),
    "responses": lambda: WholeResponse(HEAD, ECHO),
    "messages": lambda: WholeMessage(HEAD),
}
STREAMED: dict[str, Callable[[], Streamed]] = {
    "chat": lambda: StreamedAnswer(HEAD, 1, include_usage=True),
    "completions": lambda: StreamedCompletion(HEAD, FORM, include_usage=True),
    "responses": lambda: StreamedResponse(HEAD, ECHO),
    "messages": lambda: StreamedMessage(HEAD),
}
KINDS = {"text": TEXT, "calls": CALLS}
CASES = [
    (dialect, kind)
    for dialect in WHOLE
    for kind in KINDS
    if (dialect, kind) != ("completions", "calls")  # it has none
]


def leaves(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for name, item in value.items():
            yield from leaves(item, name)
    elif isinstance(value, list):
        for item in value:
            yield from leaves(item, key)
    else:
        yield key, value


def said(data: bytes) -> dict[str, Any]:
    """Returns what a stream says by the names of its fields."""
    lines = [line[6:] for line in data.decode().splitlines() if line.startswith("data: {")]
    texts: defaultdict[str, str] = defaultdict(str)
    lists: defaultdict[str, list[Any]] = defaultdict(list)
    for key, value in (leaf for line in lines for leaf in leaves(json.loads(line))):
        if key in SAID and isinstance(value, str):
            texts[key] += value
        elif key in LISTED and value not in (None, ""):
            lists[key].append(value)
    return {**texts, **lists, "usage": leaves_of_usage(lines)}


def leaves_of_usage(lines: Sequence[str]) -> Any:
    return [value for key, value in leaves(json.loads(lines[-1])) if key.endswith("tokens")]


@pytest.fixture(autouse=True)
def _same_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CallIds, "of", lambda self, choice, call: f"call_{choice}_{call}")


@pytest.mark.parametrize(("dialect", "kind"), CASES)
def test_a_whole_answer(dialect: str, kind: str) -> None:
    apart, together = KINDS[kind]
    bodies = []
    for events in ([*apart, *END], [together, *END]):
        writer = WHOLE[dialect]()
        for event in events:
            writer.add(event)
        of_body = leaves(json.loads(writer.body()))
        bodies.append([leaf for leaf in of_body if leaf[0] not in BY_CHANCE])
    assert bodies[0] == bodies[1]


@pytest.mark.parametrize(("dialect", "kind"), CASES)
def test_a_stream(dialect: str, kind: str) -> None:
    apart, together = KINDS[kind]
    found = []
    for events in ([*apart, *END], [together, *END]):
        writer = STREAMED[dialect]()
        data = b"".join([*map(writer.event, events), writer.end()])
        found.append(said(data))
    assert found[0] == found[1]
    assert "".join(str(value) for value in found[0].values())
