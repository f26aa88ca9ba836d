"""What a request's JSON may cost, and that bounding it changes nothing of what it says."""

from __future__ import annotations

import json
import tracemalloc
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.openai.json_limits import MAX_VALUE_COUNT, read_json
from gateway.openai.requests import parse_chat_request
from protos.errors import InvalidArgumentError
from protos.process.settings import MIB

data_urls = st.text('A/+=,"\\é', max_size=40).map("data:{}".format)
strings = st.text(max_size=20) | data_urls
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(-1e9, 1e9) | strings,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(strings, inner, max_size=5),
    max_leaves=20,
)


@settings(max_examples=60, deadline=None)
@given(values, st.booleans(), st.booleans())
def test_it_reads_what_json_does(value: Any, ascii_only: bool, slashes_escaped: bool) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only)
    body = (text.replace("/", "\\/") if slashes_escaped else text).encode()
    assert read_json(body) == value


@settings(max_examples=60, deadline=None)
@given(values, st.data())
def test_it_refuses_what_json_does(value: Any, data: st.DataObject) -> None:
    text = json.dumps(value, ensure_ascii=False)
    at = data.draw(st.integers(0, len(text)))
    inserted = data.draw(st.sampled_from(["", *'"\\/:,[]{}', '"data:', '\\"data:']))
    text = text[:at] + inserted + text[at + data.draw(st.integers(0, 2)) :]
    try:
        expected = json.loads(text)
    except ValueError:
        with pytest.raises(InvalidArgumentError, match="not valid JSON"):
            read_json(text.encode())
    else:
        assert read_json(text.encode()) == expected


@pytest.mark.parametrize(
    "value",
    [
        [1] * (MAX_VALUE_COUNT + 1),
        [[]] * (MAX_VALUE_COUNT + 1),
        {str(number): "" for number in range(MAX_VALUE_COUNT + 1)},
        [{"a": "\\"}] * MAX_VALUE_COUNT,
    ],
)
def test_too_many_values_are_refused(value: Any) -> None:
    with pytest.raises(
        InvalidArgumentError, match=f"values or more; the limit is {MAX_VALUE_COUNT}"
    ):
        read_json(json.dumps(value).encode())


def test_what_strings_hold_is_not_counted() -> None:
    text = '[{,"\\' * MAX_VALUE_COUNT
    assert read_json(json.dumps({"text": text}).encode()) == {"text": text}


def peak_byte_count(body: bytes) -> int:
    """Returns the most memory that parsing a request takes, besides the body."""
    tracemalloc.start()
    try:
        parse_chat_request(body)
    except InvalidArgumentError:
        pass
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    return peak


HEAD = b'{"model":"m","messages":[{"role":"user","content":"a"}],'


@pytest.mark.parametrize(
    "body",
    [
        HEAD + b'"metadata":[' + b"[]," * (4 * MIB // 3 - 100) + b"1]}",
        HEAD + b'"metadata":[' + b"1," * (2 * MIB - 100) + b"1]}",
        HEAD + b",".join(b'"%x":1' % number for number in range(400_000)) + b"}",
        HEAD + b'"stop":[' + b'"",' * (4 * MIB // 3 - 100) + b'""]}',
        HEAD + b'"user":"' + b"\\u0000" * (4 * MIB // 6 - 100) + b'"}',
        HEAD + b'"seed":' + b"1" * 3 * MIB + b"}",
        HEAD + b'"metadata":' + b"[" * 3 * MIB,
    ],
    ids=["lists", "numbers", "fields", "strings", "escapes", "digits", "depth"],
)
def test_parsing_takes_at_most_thrice_the_body(body: bytes) -> None:
    """Without the limits the lists take 27 times as much, the fields 80 times."""
    assert peak_byte_count(body) <= 3 * len(body)


def test_unknown_fields_take_no_memory() -> None:
    """Once pydantic collected an error for each: 30 MB."""
    fields = b",".join(b'"%x":1' % number for number in range(30_000))
    message = b'{"model":"m","messages":[{"role":"user","content":"a",' + fields + b"}]}"
    assert peak_byte_count(message) < 10 * MIB
    assert parse_chat_request(message).ignored_fields is None
    top_level = HEAD + fields + b"}"
    assert peak_byte_count(top_level) < 10 * MIB
    names = parse_chat_request(top_level).ignored_fields
    assert names
    assert names.startswith("0, 1, 2, ")
    assert names.endswith(", f, ...")
