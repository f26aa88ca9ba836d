"""Values of a JSON file that no config has: refused in one short line, whatever they are."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from protos.checkpoint.section import MAX_SENTENCE_LENGTH, CheckpointError, Section

FILE = Path("/models/Tiny/config.json")


def section(value: Any) -> Section:
    return Section(FILE, {"a.b": value})


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize("value", [10**400, float("inf"), float("nan"), 0, -1, -0.5])
def test_a_positive_number_is_finite(value: float) -> None:
    with pytest.raises(CheckpointError, match=r"a\.b is .* it must be more than 0, and finite"):
        section(value).positive("a.b")


@pytest.mark.parametrize(
    "value", ["x" * 5000, [7] * 5000, {str(key): "x" * 99 for key in range(99)}, nested(5000)]
)
def test_a_value_of_any_size_is_quoted_in_short(value: Any) -> None:
    with pytest.raises(CheckpointError) as caught:
        section(value).read("a.b", bool)
    told = str(caught.value)
    assert told.startswith(f"{FILE}: a.b is ")
    assert told.endswith(", not of type bool")
    assert len(told) <= MAX_SENTENCE_LENGTH


@pytest.mark.parametrize("character", ["\n", "\r", "\x1b", "\x7f", "\u2028", "\u202e", "\ud800"])
def test_what_a_file_says_stays_on_its_line(character: str) -> None:
    told = str(section(1).error(f"a{character}b", "is wrong"))
    assert told.isprintable()
    assert told == f"{FILE}: a{repr(character)[1:-1]}b is wrong"


def test_a_long_sentence_keeps_its_file_and_its_end() -> None:
    told = str(section(1).error("a" * 9999, "is wrong; fetch it again"))
    assert told.startswith(f"{FILE}: aaa")
    assert told.endswith("aaa is wrong; fetch it again")
    assert len(told) < MAX_SENTENCE_LENGTH + 10


def test_a_document_that_is_too_deep_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text("[" * 100_000)
    with pytest.raises(CheckpointError, match=r"config\.json: cannot be read"):
        Section.of_file(file)
    file.write_text(json.dumps([]))
    with pytest.raises(CheckpointError, match="is not a JSON object"):
        Section.of_file(file)


def test_what_is_no_document_is_not_read(tmp_path: Path) -> None:
    """A pipe would be waited for, and a device read until there is no memory left."""
    file = tmp_path / "config.json"
    for kind, make in (("pipe", os.mkfifo), ("folder", os.mkdir)):
        make(file)
        with pytest.raises(CheckpointError, match=rf"config\.json: is not a file, but a {kind}"):
            Section.of_file(file)
        file.rename(tmp_path / kind)
    file.symlink_to("/dev/zero")
    with pytest.raises(CheckpointError, match="a device"):
        Section.of_file(file)
    file.unlink()
    with file.open("wb") as hole:
        hole.truncate(2**40)
    with pytest.raises(CheckpointError, match=r"config\.json: is too large"):
        Section.of_file(file)
