"""What is mended in a body's JSON, and how the place of a fault is told."""

from __future__ import annotations

import base64
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.images.data_urls import BodyReader, ContentLimits
from gateway.memory import Memory
from gateway.openai.json_errors import MAX_LONE_COUNT
from gateway.openai.json_limits import read_json
from protos.errors import InvalidArgumentError
from protos.process.settings import MIB

LONG = '"' + "é" * 5 + '"'


def refused(body: bytes) -> str:
    with pytest.raises(InvalidArgumentError) as caught:
        read_json(body)
    return caught.value.message


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (r'"cut \ud83d"', "cut \ufffd"),
        (r'"\ude00 cut"', "\ufffd cut"),
        (r'"\ud83d\ud83d\ude00"', "\ufffd\U0001f600"),
        (r'"\ude00\ude00"', "\ufffd\ufffd"),
        (r'"\\ud83d\ude00"', "\\ud83d\ufffd"),
        (r'"\\\ud83d\ude00 \ud83d"', "\\\U0001f600 \ufffd"),
        (r'"\uD83D\n"', "\ufffd\n"),
        (r'{"\udc00": ["\udc01"]}', {"\ufffd": ["\ufffd"]}),
    ],
)
def test_half_a_surrogate_pair_is_the_replacement_character(text: str, value: object) -> None:
    assert read_json(text.encode()) == value


PIECES = ["\\", "\\\\", "\\u", "\\ud83d", "\\ude00", "\\uDC00", "d83d", "\\n", "u0041", "a"]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=8).map("".join))
def test_escapes_are_read_as_json_reads_them(inner: str) -> None:
    text = f'"{inner}"'
    try:
        expected = json.loads(text)
    except ValueError:
        refused(text.encode())
        return
    lone = dict.fromkeys(range(0xD800, 0xE000), "\ufffd")
    assert read_json(text.encode()) == expected.translate(lone)


def test_few_halves_are_mended() -> None:
    body = b'"' + rb"\ud83d" * (MAX_LONE_COUNT + 1) + b'"'
    assert refused(body) == f"the body has more than {MAX_LONE_COUNT} halves of surrogate pairs"


def test_a_byte_order_mark_is_skipped() -> None:
    assert read_json('\ufeff{"a": 1}'.encode()) == {"a": 1}


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "it is empty"),
        (b" \n", "it is empty"),
        (b'{"a": 1,\n}', "trailing comma, at line 2, column 1"),
        (f"[{LONG},\n {LONG}, x]".encode(), "expected a value, at line 2, column 11"),
        (b"[1,\n\n  2 3]", "expected ',' or ']', at line 3, column 5"),
        (b"{'a': 1}", "a name must be in double quotes, at line 1, column 2"),
        (b'{"a": 1} {', "trailing characters, at line 1, column 10"),
        (b'{"a": "b', "it ends within a string, at line 1, column 8"),
        (b'{"a": 1', "it ends within an object, at line 1, column 7"),
        (b'["a\nb"]', "a control character in a string must be escaped, as \\n or \\t, at line 1"),
        (b'["C:\\dir"]', "a backslash must be doubled, or begin an escape such as \\n, at line 1"),
        (b'{"a": NaN}', "JSON has no number NaN, at line 1, column 7"),
        (b'{"a": Infinity}', "JSON has no number Infinity, at line 1, column 7"),
        (b'{"a":\n-Infinity}', "JSON has no number Infinity, at line 2, column 2"),
        (b"[1, nil]", "expected true, false or null, at line 1"),
        (b"[" * 10_000, "it is nested too deeply; 200 levels are the limit, at line 1, column 202"),
    ],
)
def test_a_fault_has_a_reason_and_a_place(body: bytes, words: str) -> None:
    assert refused(body).startswith(f"the body is not valid JSON: {words}")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b'{"a": "\xff"}', "0xff at line 1, column 8"),
        ('{\n"é": "'.encode() + b'\xed\xa0\x80"}', "0xed at line 2, column 7"),
        ('{"a": 1}'.encode("utf-16"), "0xff at line 1, column 1"),
    ],
)
def test_bytes_that_are_no_utf_8_are_named(body: bytes, words: str) -> None:
    assert refused(body) == f"the body is not UTF-8: the byte {words}"


def test_a_place_behind_an_image_says_that_its_url_does_not_count() -> None:
    url = "data:image/png;base64," + base64.b64encode(bytes(3000)).decode()
    with Memory(8 * MIB).share() as share:
        reader = BodyReader(ContentLimits(MIB, 4, MIB), share, {(None, b"url")})
        reader.feed(b'[{"url": "%s"},\n{"url": "%s", x}]' % ((url.encode(),) * 2))
        message = refused(reader.finish().text)
    column = len('{"url": "", ') + 1
    assert message.endswith(f"at line 2, column {column}, data URLs not counted")
