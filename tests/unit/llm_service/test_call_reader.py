"""Calls are read out of answers, however their tokens lie."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_service.call_reader import CallReader
from llm_service.detokenizer import Detokenizer
from llm_service.pieces import ControlToken
from llm_service.sampling import Guide, ToolCallGuide, ToolCalls
from llm_service.tools.base import Envelope, ToolCall, ToolDefinition
from llm_service.tools.create import tool_format
from tests.real_tokenizers import WITHOUT_CALL_MARKS, real_tokenizer

# One whose marks are text, within a vocabulary that has no token for them, and one of tokens.
TOKENIZERS = {"text": real_tokenizer(WITHOUT_CALL_MARKS), "tokens": real_tokenizer("internlm2_5")}
CALL = ToolCall("weather", '{"city": "Paris"}')


def envelope_of(marks: str) -> Envelope:
    return tool_format(TOKENIZERS[marks]).envelope


def new_guide(
    marks: str, *, is_required: bool = False, instead: Guide | None = None
) -> ToolCallGuide:
    tools = (ToolDefinition("weather"),)
    calls = ToolCalls(envelope_of(marks), tools, frozenset({"weather"}))
    return ToolCallGuide(calls, is_required, instead)


def encoded(marks: str, pieces: Iterable[Any]) -> list[int]:
    tokenizer, ids = TOKENIZERS[marks], list[int]()
    for piece in pieces:
        if isinstance(piece, ControlToken):
            ids.append(tokenizer.special_id(piece.content))
        else:
            ids += tokenizer.encode(piece)
    return ids


def answer_ids(marks: str, text: str, calls: Iterable[ToolCall]) -> list[int]:
    envelope = envelope_of(marks)
    written = [envelope.pieces(call) for call in calls]
    ids = encoded(marks, [text]) if text else []
    for index, pieces in enumerate(written):
        separator = envelope.separator if index or text else ""
        ids += encoded(marks, [separator, *pieces] if separator else pieces)
    return ids


def read(
    marks: str, guide: ToolCallGuide, ids: Iterable[int], *, size: int = 1, skip: bool = True
) -> tuple[str, list[ToolCall]]:
    """Returns what an answer says, and its calls, when its tokens come so many at a time."""
    tokenizer = TOKENIZERS[marks]
    reader = CallReader(guide, tokenizer, skip_special_tokens=skip)
    detokenizer = Detokenizer(
        tokenizer, skip_special_tokens=skip, keep_first_space=True, symbols=reader.symbols
    )
    text, token_ids = "", list(ids)
    calls: dict[int, ToolCall] = {}
    for place in range(0, len(token_ids), size):
        new, pieces = reader.push(detokenizer.push(token_ids[place : place + size]))
        text += new
        for piece in pieces:
            assert bool(piece.name) == (piece.call_index not in calls)
            known = calls.get(piece.call_index, ToolCall(piece.name, ""))
            calls[piece.call_index] = ToolCall(known.name, known.arguments + piece.arguments)
    new, pieces = reader.push(detokenizer.finish())
    assert not pieces
    return text + new + reader.finish(), list(calls.values())


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text('a"\\{}[]<>|é天\n', max_size=6),
    lambda children: (
        st.lists(children, max_size=2) | st.dictionaries(st.text('a"}', max_size=2), children)
    ),
    max_leaves=5,
)
ARGUMENTS = st.builds(
    lambda value, indent: json.dumps(value, ensure_ascii=False, indent=indent),
    st.dictionaries(st.sampled_from(["a", '"', "}\n</tool_call>", "<|action_end|>"]), VALUES),
    st.sampled_from([None, 2]),
)
NAMES = st.sampled_from(["weather", 'a "quoted\\" name', '", "arguments": {}', "天气", "}"])
CALLS = st.lists(st.builds(ToolCall, NAMES, ARGUMENTS), max_size=3)
SAID = st.text("a <tol_c>\n|é", max_size=8).filter(lambda text: not text.endswith("\n"))


@pytest.mark.parametrize("marks", TOKENIZERS)
@settings(max_examples=100, deadline=None)
@given(text=SAID, calls=CALLS, size=st.integers(1, 9))
def test_text_and_calls_come_out_as_they_went_in(
    marks: str, text: str, calls: list[ToolCall], size: int
) -> None:
    ids = answer_ids(marks, text, calls)
    assert read(marks, new_guide(marks), ids, size=size) == (text, calls)


@pytest.mark.parametrize("marks", TOKENIZERS)
def test_an_answer_that_is_cut_has_what_has_come(marks: str) -> None:
    ids = answer_ids(marks, "", [CALL, CALL])
    whole = CALL.name + CALL.arguments
    seen = set()
    for count in range(len(ids)):
        text, calls = read(marks, new_guide(marks, is_required=True), ids[:count])
        assert text == ""
        for call in calls:
            assert whole.startswith(call.name + call.arguments)
            seen.add(call.arguments)
    assert len(seen) > 3


def test_a_mark_that_is_cut_is_text() -> None:
    cut = TOKENIZERS["text"].encode("Look:\n<tool_ca")
    assert read("text", new_guide("text"), cut) == ("Look:\n<tool_ca", [])
    ids = answer_ids("text", "Look:", [CALL])
    assert read("text", new_guide("text"), ids) == ("Look:", [CALL])


@pytest.mark.parametrize("marks", TOKENIZERS)
@pytest.mark.parametrize(("skip", "shown"), [(True, ""), (False, "<ref>")])
def test_special_tokens_before_calls_are_as_in_any_text(marks: str, skip: bool, shown: str) -> None:
    ids = [*TOKENIZERS[marks].encode("a<ref>b"), *answer_ids(marks, "c", [CALL])]
    assert read(marks, new_guide(marks), ids, skip=skip) == (f"a{shown}bc", [CALL])


def test_marks_that_are_no_special_tokens_may_be_said() -> None:
    """In Qwen2.5's vocabulary; what a guide allows in arguments, too."""
    tokenizer = real_tokenizer("qwen2_5")
    envelope = tool_format(tokenizer).envelope
    calls = ToolCalls(envelope, (ToolDefinition("weather"),), frozenset({"weather"}))
    reader = CallReader(ToolCallGuide(calls, False), tokenizer, skip_special_tokens=True)
    detokenizer = Detokenizer(tokenizer, symbols=reader.symbols)
    start, end = map(tokenizer.special_id, ("<tool_call>", "</tool_call>"))
    typed = tokenizer.encode_plain("<tool_call>")
    call = tokenizer.encode('\n{"name": "weather", "arguments": {"a": "<tool_call>"}}\n')
    assert start in call
    text, pieces = reader.push(detokenizer.push([*typed, end, start, *call, end]))
    assert text == "<tool_call></tool_call>"
    assert "".join(piece.arguments for piece in pieces) == '{"a": "<tool_call>"}'


def test_a_special_token_within_a_mark_leaves_it_text() -> None:
    ids = TOKENIZERS["text"].encode("<tool<ref>_call>\n")
    assert read("text", new_guide("text"), ids) == ("<tool_call>\n", [])


def test_a_mark_that_is_typed_is_text_where_it_should_be_a_token() -> None:
    typed = "<|action_start|><|plugin|>\n{"
    ids = [*TOKENIZERS["tokens"].encode_plain(typed), *answer_ids("tokens", " ", [CALL])]
    assert read("tokens", new_guide("tokens"), ids) == (f"{typed} ", [CALL])


@pytest.mark.parametrize("marks", TOKENIZERS)
def test_beside_a_guide_calls_stand_at_the_beginning_alone(marks: str) -> None:
    guide = new_guide(marks, instead=Guide("json_object"))
    assert read(marks, guide, answer_ids(marks, "", [CALL])) == ("", [CALL])
    text = '{"a": "<tool_call>\\n{"}'
    assert read(marks, guide, TOKENIZERS[marks].encode(text)) == (text, [])
