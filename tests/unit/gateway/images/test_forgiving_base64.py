"""Base64 as browsers decode it: by the platform's examples, and against a plain implementation."""

from __future__ import annotations

import base64
import re
from urllib.parse import unquote_to_bytes

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.images.forgiving_base64 import Base64Decoder
from protos.errors import ImageTooLargeError, InvalidImageError

LIMIT = 10_000


def decode(payload: bytes, *cuts: int, max_byte_count: int = LIMIT) -> bytes:
    """Returns what a payload that comes in pieces, cut at these places, stands for."""
    decoder = Base64Decoder(max_byte_count)
    places = sorted({0, len(payload), *(cut % (len(payload) + 1) for cut in cuts)})
    for start, end in zip(places, [*places[1:], len(payload)], strict=True):
        decoder.feed(payload[start:end])
    decoder.finish()
    return bytes(decoder.content)


def reference(payload: bytes) -> bytes | None:
    """Returns what WHATWG's URL, Fetch and Infra standards make of it, or None for failure.

    The alphabet of URLs (- and _) is ours.
    """
    url = payload.partition(b"#")[0].translate(None, b"\t\n\r")
    data = unquote_to_bytes(url).translate(bytes.maketrans(b"-_", b"+/"), b" \t\n\f\r")
    if len(data) % 4 == 0:
        data = re.sub(rb"={1,2}\Z", b"", data)
    if len(data) % 4 == 1 or re.search(rb"[^A-Za-z0-9+/]", data):
        return None
    return base64.b64decode(data + b"=" * (-len(data) % 4))


# Of web-platform-tests' base64.json: None is a failure.
PLATFORM_EXAMPLES = {
    "": "",
    "abcd": "69b71d",
    " abcd": "69b71d",
    "abcd ": "69b71d",
    " abcd===": None,
    "abcd=== ": None,
    "abcd ===": None,
    "a": None,
    "ab": "69",
    "abc": "69b7",
    "abcde": None,
    "\ud83d\udca9": None,
    "=": None,
    "==": None,
    "===": None,
    "====": None,
    "=====": None,
    "a=": None,
    "a==": None,
    "a===": None,
    "a====": None,
    "ab=": None,
    "ab==": "69",
    "ab===": None,
    "ab====": None,
    "abc=": "69b7",
    "abc==": None,
    "abc===": None,
    "abcd=": None,
    "abcd==": None,
    "abcd====": None,
    "abcde=": None,
    "abcde==": None,
    "abcde===": None,
    "=a": None,
    "=a=": None,
    "a=b": None,
    "a=b=": None,
    "ab=c": None,
    "ab=c=": None,
    "ab=cd": None,
    "abc=d": None,
    "abc=d=": None,
    "ab\tcd": "69b71d",
    "ab\ncd": "69b71d",
    "ab\fcd": "69b71d",
    "ab\rcd": "69b71d",
    "ab cd": "69b71d",
    "ab\u00a0cd": None,
    "ab\t\n\f\r cd": "69b71d",
    " \t\n\f\r ab\t\n\f\r cd\t\n\f\r ": "69b71d",
    "ab\t\n\f\r =\t\n\f\r =\t\n\f\r ": "69",
    "A": None,
    "/A": "fc",
    "//A": "fff0",
    "///A": "ffffc0",
    "////A": None,
    "/": None,
    "A/": "03",
    "AA/": "000f",
    "AAA/": "00003f",
    "AAAA/": None,
    "\0nonsense": None,
    "abcd\0nonsense": None,
    "YQ": "61",
    "YR": "61",
    "\x0b": None,
    "\u2002": None,
    "\u2029": None,
    "\ufeff": None,
}


@pytest.mark.parametrize("payload", PLATFORM_EXAMPLES)
@pytest.mark.parametrize("cuts", [(), range(30)])
def test_the_platforms_examples_are_decoded(payload: str, cuts: tuple[int, ...]) -> None:
    data, expected = payload.encode("utf-8", "surrogatepass"), PLATFORM_EXAMPLES[payload]
    assert reference(data) == (None if expected is None else bytes.fromhex(expected))
    if expected is None:
        with pytest.raises(InvalidImageError, match="base64"):
            decode(data, *cuts)
    else:
        assert decode(data, *cuts) == bytes.fromhex(expected)


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        ("aGk%3D", b"hi"),
        ("aGk%3d%0D%0A", b"hi"),
        ("aG%6B", b"hi"),
        ("aG%6\nB", b"hi"),
        ("%61%47%6b%3D", b"hi"),
        ("aGk=#from=there", b"hi"),
        ("aGk#=", b"hi"),
        ("%2B%2f%2B%2f", b"\xfb\xff\xbf"),
        ("-_-_", b"\xfb\xff\xbf"),
        ("%2D%5F-_", b"\xfb\xff\xbf"),
    ],
)
def test_escapes_fragments_and_the_alphabet_of_urls_are_understood(
    payload: str, expected: bytes
) -> None:
    for cut in range(len(payload)):
        assert decode(payload.encode(), cut) == expected
    assert decode(payload.encode(), *range(len(payload))) == expected


PIECES = [
    *b"AZaz09+/=-_ \t\n\f\r%#*",
    b"%3D",
    b"%2B",
    b"%0a",
    b"%20",
    b"%2",
    b"abcd",
    b"iVBORw0KGgo",
    *(rb"\u0041", rb"\/", b"\\", b'"'),  # what they are in JSON
]
payloads = st.lists(
    st.sampled_from([piece if isinstance(piece, bytes) else bytes([piece]) for piece in PIECES]),
    max_size=30,
).map(b"".join)


def laid_out(content: bytes, line: int, end: str, padded: bool, escaped: bool) -> bytes:
    """Returns base64 as a program might write it."""
    text = base64.b64encode(content).decode()
    text = end.join(text[i : i + line] for i in range(0, len(text), line)) + end
    text = text if padded else text.replace("=", "")
    return (text.replace("+", "%2B").replace("/", "%2f") if escaped else text).encode()


written = st.builds(
    laid_out,
    st.binary(max_size=200),
    st.integers(1, 80),
    st.sampled_from(["", "\n", "\r\n", " ", "%0A"]),
    st.booleans(),
    st.booleans(),
)


@example(b"aG%6\nB#=", [1, 2, 3, 4, 5, 6, 7])
@example(b"aGk=aGk=", [4])
@example(b"aGk=#", [])
@example(b"#", [])
@given(payloads | written, st.lists(st.integers(min_value=0), max_size=9))
def test_any_cut_decodes_as_the_standard_says(payload: bytes, cuts: list[int]) -> None:
    expected = reference(payload)
    if expected is None:
        with pytest.raises(InvalidImageError):
            decode(payload, *cuts)
    else:
        assert decode(payload, *cuts) == expected


@pytest.mark.parametrize(
    ("payload", "sentence"),
    [
        ("abcdabcdabcd\nabc*abcd", "may not hold '*' (at its character 17)"),
        ("abcd%2Aabcd", "no escape of one of its characters (at its character 5)"),
        ("ab%", "no escape of one of its characters (at its character 3)"),
        ("b'abcd'", 'may not hold "\'" (at its character 2)'),
        ("abcd\x0bab", "may not hold '\\x0b' (at its character 5)"),
        ("abcdäb", "may not hold a character beyond ASCII (at its character 5)"),
        ("abc=abcd", "has '=' before its end (at its character 4)"),
        ("=", "too few '='"),
        ("ab=", "too few '='; none will do"),
        ("abcda", "was cut: its last character stands alone"),
    ],
)
def test_errors_say_what_is_wrong_and_where(payload: str, sentence: str) -> None:
    for cuts in ((), range(100)):
        with pytest.raises(InvalidImageError) as error:
            decode(payload.encode(), *cuts)
        if sentence.startswith("has '='") and cuts:
            continue  # the first '=' was right, as far as it came
        assert sentence in error.value.message


@pytest.mark.parametrize("payload", [b"aGkh", b"aG\nkh", b"aGkhaA"])
def test_content_has_a_limit(payload: bytes) -> None:
    byte_count = len(decode(payload))
    assert len(decode(payload, max_byte_count=byte_count)) == byte_count
    for cuts in ((), range(9)):
        with pytest.raises(ImageTooLargeError, match=f"the limit is {byte_count - 1}"):
            decode(payload, *cuts, max_byte_count=byte_count - 1)


def test_what_means_nothing_is_not_kept() -> None:
    decoder = Base64Decoder(LIMIT)
    for piece in [
        b"%",
        *[b"\n" * 1000] * 50,
        b"4",
        *[b"\r" * 1000] * 50,
        b"1",
        *[b" " * 1000] * 50,
    ]:
        decoder.feed(piece)
        assert len(decoder._rest) <= 5
    decoder.feed(b"AAA")
    decoder.finish()
    assert decoder.content == bytes(3)
