"""JSON that cannot be read: what is mended in it, and where the rest is wrong."""

from __future__ import annotations

import re
from collections.abc import Iterator

from protos.errors import InvalidArgumentError

# The escape of half a surrogate pair, and a second half behind it. Of a run of backslashes each
# second one is escaped.
SURROGATES = re.compile(
    rb"(?<!\\)(?P<run>\\+)u(?P<first>[dD][89a-fA-F][0-9a-fA-F]{2})"
    rb"(?P<second>\\u[dD][c-fC-F][0-9a-fA-F]{2})?"
)
REPLACEMENT = rb"\ufffd"
# A text that was cut has one; a body full of them would keep a thread busy for a second.
MAX_LONE_COUNT = 1024
# What stands for an image whose data URL has been taken out of the body.
ATTACHED = re.compile(rb"attached:[0-9a-f]{32}:[0-9]+")
PLACE = re.compile(r"(?P<reason>.*) at line (?P<line>\d+) column (?P<column>\d+)", re.DOTALL)
NOT_A_NUMBER = re.compile(rb"NaN|Infinity")
# The parser's words where they do not say what to do.
REASONS = {
    "EOF while parsing a value": "it ends where a value should be",
    "EOF while parsing a string": "it ends within a string",
    "EOF while parsing an object": "it ends within an object",
    "EOF while parsing a list": "it ends within a list",
    "expected ident": "expected true, false or null",
    "expected value": "expected a value",
    "key must be a string": "a name must be in double quotes",
    "invalid escape": "a backslash must be doubled, or begin an escape such as \\n",
    "recursion limit exceeded": "it is nested too deeply; 200 levels are the limit",
    "control character (\\u0000-\\u001F) found while parsing a string": (
        "a control character in a string must be escaped, as \\n or \\t"
    ),
}


def without_lone_surrogates(text: bytes) -> bytes:
    """Returns JSON in which U+FFFD, of the same length, stands for each half of a pair.

    Raises:
        InvalidArgumentError: there are too many of them.
    """
    mended = bytearray(text)
    for count, end in enumerate(_lone_surrogates(text)):
        if count == MAX_LONE_COUNT:
            raise InvalidArgumentError(
                f"the body has more than {MAX_LONE_COUNT} halves of surrogate pairs"
            )
        mended[end - len(REPLACEMENT) : end] = REPLACEMENT
    return bytes(mended)


def _lone_surrogates(text: bytes) -> Iterator[int]:
    """Yields where the escapes of halves end that have no other half."""
    for found in SURROGATES.finditer(text):
        run, first, second = found.groups()
        is_escape = len(run) % 2 == 1
        if is_escape and second and first[1:2] in b"89abAB":
            continue
        if is_escape:
            yield found.end("first")
        if second:
            yield found.end("second")


def json_refusal(text: bytes, finding: str) -> InvalidArgumentError:
    """Returns the error for a body that is no JSON, by what the parser has found."""
    if not text.strip():
        return InvalidArgumentError("the body is not valid JSON: it is empty")
    try:
        text.decode()
    except UnicodeDecodeError as error:
        place = _place(text, error.start)
        return InvalidArgumentError(
            f"the body is not UTF-8: the byte 0x{text[error.start]:02x} at {place}"
        )
    found = PLACE.fullmatch(finding)
    if found is None:
        return InvalidArgumentError("the body is not valid JSON")
    offset = _offset(text, int(found["line"]), int(found["column"]))
    reason = _reason(text, found["reason"], offset)
    return InvalidArgumentError(f"the body is not valid JSON: {reason}, at {_place(text, offset)}")


def _reason(text: bytes, reason: str, offset: int) -> str:
    if number := NOT_A_NUMBER.match(text, offset):
        return f"JSON has no number {number[0].decode()}"
    return REASONS.get(reason, reason.replace("`", "'"))


def _offset(text: bytes, line: int, column: int) -> int:
    """Returns the index of a byte by its line and its column within it, both from 1."""
    start = 0
    for _ in range(line - 1):
        start = text.index(b"\n", start) + 1
    return max(0, start + column - 1)


def _place(text: bytes, offset: int) -> str:
    """Returns line and column of a byte, in characters; images in data URLs take no columns."""
    start = text.rfind(b"\n", 0, offset) + 1
    line = text.count(b"\n", 0, offset) + 1
    before, image_count = ATTACHED.subn(b"", text[start:offset])
    column = len(before.decode(errors="ignore")) + 1
    note = ", data URLs not counted" if image_count else ""
    return f"line {line}, column {column}{note}"
