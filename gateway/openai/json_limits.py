"""A request's JSON: what it may cost is counted in its bytes, before objects are made of them."""

from __future__ import annotations

from codecs import BOM_UTF8
from typing import Any

from pydantic_core import from_json

from gateway.openai.json_errors import json_refusal, without_lone_surrogates
from protos.errors import InvalidArgumentError

# Entries of objects and lists. An entry of three bytes takes a hundred as an object, and the
# longest conversation that is allowed has 24,000.
MAX_VALUE_COUNT = 32_768
# Where they may be token ids: those of eight of the longest prompts.
MAX_TOKEN_VALUE_COUNT = 8 * MAX_VALUE_COUNT


def read_json(text: bytes, max_value_count: int = MAX_VALUE_COUNT) -> Any:
    """Returns what `json.loads` would, at a cost that the text's size bounds.

    A byte order mark is skipped, and a half of a surrogate pair becomes U+FFFD.

    Raises:
        InvalidArgumentError: it has too many values, or is not JSON.
    """
    text = text.removeprefix(BOM_UTF8)
    _check_value_count(text, max_value_count)
    try:
        return from_json(text, allow_inf_nan=False)
    except ValueError:
        text = without_lone_surrogates(text)
    try:
        return from_json(text, allow_inf_nan=False)
    except ValueError as error:
        raise json_refusal(text, str(error)) from None


def _check_value_count(text: bytes, limit: int) -> None:
    """Raises InvalidArgumentError for too many entries of objects and lists."""
    if _entry_count(text) <= limit:  # even with the commas within strings
        return
    unescaped = text.replace(b"\\\\", b"").replace(b'\\"', b"")
    # A string is a key or a value: of these there are at most two to an entry.
    value_count = unescaped.count(b'"') // 4
    if value_count <= limit:
        value_count = _entry_count(b"".join(unescaped.split(b'"')[::2]))
    if value_count > limit:
        raise InvalidArgumentError(
            f"the body has {value_count} values or more; the limit is {limit}"
        )


def _entry_count(text: bytes) -> int:
    return sum(text.count(character) for character in (b",", b"[", b"{"))
