"""Reads Server-Timing by its grammar: https://www.w3.org/TR/server-timing."""

from __future__ import annotations

import re
from typing import NamedTuple

TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
# No value that we send needs an escape.
METRIC = re.compile(rf'({TOKEN})(?:;dur=(\d+\.\d)|;desc="([^"\\]*)")')
COMMENT = re.compile(rb"^: server-timing: (.*)\n\ndata: \[DONE\]\n\n\Z", re.MULTILINE)


class Told(NamedTuple):
    """What a value says: milliseconds by stage, and the pictures in their order."""

    stages: dict[str, float]
    images: list[str]


def told(value: str) -> Told:
    """Returns what a header's value, or a comment's, says; all of it must be of the grammar."""
    matches = [METRIC.fullmatch(entry) for entry in value.split(", ")]
    entries = [match.groups() for match in matches if match]
    assert len(entries) == len(matches), value
    stages = {name: float(duration) for name, duration, _ in entries if duration}
    images = {name: description for name, _, description in entries if description}
    assert [*stages, *images] == [name for name, *_ in entries], "each once, the pictures last"
    assert list(images) == [f"image-{number}" for number in range(1, len(images) + 1)]
    return Told(stages, list(images.values()))


def told_by_stream(body: bytes) -> Told:
    """Returns what the comment before a stream's end says."""
    comment = COMMENT.search(body)
    assert comment, body[-1000:]
    return told(comment[1].decode())
