"""A request's JSON: what it may cost is counted in its bytes, before objects are made of them."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from typing import Any

from pydantic_core import from_json

from protos.errors import ContextLengthError, InvalidArgumentError
from protos.process.settings import KIB, MIB

DEFAULT_MAX_TEXT_BYTE_COUNT = 4 * MIB
# Entries of objects and lists. An entry of three bytes takes a hundred as an object, and the
# longest conversation that is allowed has 24,000.
MAX_VALUE_COUNT = 32_768
# Shorter data URLs are text, and those after so many.
LEAST_URL_BYTE_COUNT = 4 * KIB
MAX_URL_COUNT = 4096
URL_START = b'"data:'
# How much is looked at without letting other threads run.
BLOCK_BYTE_COUNT = MIB


def read_json(body: bytes, max_text_byte_count: int = DEFAULT_MAX_TEXT_BYTE_COUNT) -> Any:
    """Returns what `json.loads` would, at a cost that the body's size bounds.

    Long data URLs are taken out first, and put back into what the rest was parsed to: the parser
    holds the interpreter's lock, with escaped slashes for half a second.

    Args:
        body: JSON in UTF-8.
        max_text_byte_count: how many bytes there may be outside of data URLs.

    Raises:
        ContextLengthError: there are more.
        InvalidArgumentError: it has too many values, or is not JSON.
    """
    mark = f"data:{secrets.token_hex(16)}:"  # the client cannot know it, nor send it
    urls: dict[str, str] = {}
    pieces: list[bytes] = []
    rest_byte_count = end = 0
    for start, stop, url in _data_urls(body):
        name = f"{mark}{len(urls)}"
        urls[name] = url
        pieces += (body[end:start], name.encode())
        rest_byte_count += start - end
        end = stop
    rest_byte_count += len(body) - end
    if rest_byte_count > max_text_byte_count:
        raise ContextLengthError(
            f"the request has {rest_byte_count} bytes of text; the limit is {max_text_byte_count}"
        )
    text = b"".join([*pieces, body[end:]])
    _check_value_count(text)
    try:
        value = from_json(text, allow_inf_nan=False)
    except ValueError as error:
        raise InvalidArgumentError("the body is not valid JSON") from error
    return _restored(value, urls) if urls else value


def _data_urls(body: bytes) -> Iterator[tuple[int, int, str]]:
    """Yields start, end and value of long strings that are data URLs.

    What is taken for a string need not be one where the body is not JSON; then the parser stops
    before it.
    """
    stop = 0
    for _ in range(MAX_URL_COUNT):
        quote = body.find(URL_START, stop)
        stop = body.find(b'"', quote + 1)
        if quote < 0 or stop < 0:
            return
        start = quote + 1
        is_long = stop - start >= LEAST_URL_BYTE_COUNT
        if is_long and body[quote - 1 : quote] != b"\\" and (url := _url(body, start, stop)):
            yield start, stop, url


def _url(body: bytes, start: int, stop: int) -> str | None:
    """Returns the string between two quotes; None unless it is ASCII, with no escape but `\\/`.

    Raw control characters pass, which JSON does not allow: no data URL holds one.
    """
    try:
        if body.find(b"\\", start, stop) < 0:
            return str(memoryview(body)[start:stop], "ascii")
        return "".join(_unescaped_blocks(body, start, stop))
    except ValueError:
        return None


def _unescaped_blocks(body: bytes, start: int, stop: int) -> Iterator[str]:
    """Yields a string's value in blocks; ValueError if it has another escape, or is not ASCII."""
    while start < stop:
        last = min(start + BLOCK_BYTE_COUNT, stop)
        last += body[last - 1 : last] == b"\\"  # with what it escapes
        block = body[start:last].replace(b"\\/", b"/")
        if b"\\" in block:
            raise ValueError
        yield block.decode("ascii")
        start = last


def _check_value_count(text: bytes) -> None:
    """Raises InvalidArgumentError for too many entries of objects and lists."""
    if _entry_count(text) <= MAX_VALUE_COUNT:  # even with the commas within strings
        return
    unescaped = text.replace(b"\\\\", b"").replace(b'\\"', b"")
    # A string is a key or a value: of these there are at most two to an entry.
    value_count = unescaped.count(b'"') // 4
    if value_count <= MAX_VALUE_COUNT:
        value_count = _entry_count(b"".join(unescaped.split(b'"')[::2]))
    if value_count > MAX_VALUE_COUNT:
        raise InvalidArgumentError(
            f"the body has {value_count} values or more; the limit is {MAX_VALUE_COUNT}"
        )


def _entry_count(text: bytes) -> int:
    return sum(text.count(character) for character in (b",", b"[", b"{"))


def _restored(value: Any, urls: dict[str, str]) -> Any:
    """Returns the value with the data URLs in their places."""
    if isinstance(value, str):
        return urls.get(value, value)
    if isinstance(value, list):
        return [_restored(item, urls) for item in value]
    if isinstance(value, dict):
        return {_restored(key, urls): _restored(item, urls) for key, item in value.items()}
    return value
