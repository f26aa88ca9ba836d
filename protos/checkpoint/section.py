"""A checkpoint's JSON files, read key by key: what is wrong there is told by file and key."""

from __future__ import annotations

import json
import reprlib
import stat
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

# Of a size in config.json: seven times the largest released, a vocabulary. The bytes of a product
# of two, which a matrix has, stay far within 64 bits.
LARGEST_SIZE = 1_048_576
# Ten times a large tokenizer.json.
MAX_DOCUMENT_BYTE_COUNT = 256 * 1024**2
# Of a sentence that quotes what a file holds: file and key stand at the start, the fix at the end.
MAX_SENTENCE_LENGTH = 600
SENTENCE_END_LENGTH = 200

# How values are quoted: not all of a long one, nor of one within a thousand others.
_QUOTED = reprlib.Repr()
_QUOTED.maxstring = _QUOTED.maxlong = _QUOTED.maxother = 100

Value = TypeVar("Value")


class CheckpointError(Exception):
    """The checkpoint cannot be served: a sentence that names the file, and the key or tensor.

    It is one line of a bounded length, whatever a file's names and values hold.
    """

    def __init__(self, sentence: str) -> None:
        super().__init__(_one_line(sentence))


@dataclass(frozen=True)
class Section:
    """An object of a JSON file.

    A key is missed by an error, or stands for `default` where one is given; null reads as a missing
    key, as the classes that wrote the file read it.

    Attributes:
        file: where it stands.
        values: the object.
        prefix: path of the object in the file, with a dot behind; empty for the whole file.
    """

    file: Path
    values: Mapping[str, Any]
    prefix: str = ""

    @classmethod
    def of_file(cls, file: Path) -> Section:
        """Reads a file that holds one object.

        Raises:
            CheckpointError: it is missing, or no JSON object.
        """
        try:
            if require_file(file) > MAX_DOCUMENT_BYTE_COUNT:
                raise CheckpointError(f"{file}: is too large for what it is to hold")
            values = json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise CheckpointError(f"there is no file {file}") from error
        except (OSError, ValueError, RecursionError) as error:
            raise CheckpointError(f"{file}: cannot be read: {error}") from error
        if not isinstance(values, dict):
            raise CheckpointError(f"{file}: is not a JSON object")
        return cls(file, values)

    def has(self, key: str) -> bool:
        """Returns whether the key has a value other than null."""
        return self.values.get(key) is not None

    def error(self, key: str, complaint: str) -> CheckpointError:
        """Returns an error that names the file and the key's path, e.g. "c.json: a.b is 1"."""
        return CheckpointError(f"{self.file}: {self.prefix}{key} {complaint}")

    def read(self, key: str, kind: type[Value], default: Value | None = None) -> Value:
        """Returns a value of that type."""
        value = self.values.get(key)
        if value is None and default is not None:
            return default
        if key not in self.values:
            raise self.error(key, "is missing")
        # In Python True is an int; in a config it never stands for a number.
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise self.error(key, f"is {quoted(value)}, not of type {kind.__name__}")
        return value

    def section(self, key: str, default: dict[str, Any] | None = None) -> Section:
        """Returns an object within this one."""
        return Section(self.file, self.read(key, dict, default), f"{self.prefix}{key}.")

    def size(self, key: str, largest: int = LARGEST_SIZE, default: int | None = None) -> int:
        """Returns a whole number from 1 to `largest`."""
        value = self.read(key, int, default)
        if not 1 <= value <= largest:
            raise self.error(key, f"is {quoted(value)}; it must be 1 to {largest}")
        return value

    def positive(self, key: str, default: float | None = None) -> float:
        """Returns a finite number above 0, be it written with a point or without."""
        is_whole = isinstance(self.values.get(key), int)
        found = self.read(key, int) if is_whole else self.read(key, float, default)
        if not 0 < found <= sys.float_info.max:
            raise self.error(key, f"is {quoted(found)}; it must be more than 0, and finite")
        return float(found)

    def multiple(self, key: str, factor: int, default: int | None = None) -> int:
        """Returns a size that `factor` divides."""
        value = self.size(key, default=default)
        if value % factor:
            raise self.error(key, f"is {value}, not a multiple of {factor}")
        return value

    def one_of(self, key: str, supported: tuple[str, ...], default: str | None = None) -> str:
        """Returns one of the supported words."""
        value = self.read(key, str, default)
        if value not in supported:
            raise self.error(key, f"is {quoted(value)}; supported: {', '.join(supported)}")
        return value

    def require_values(self, supported: Mapping[str, Any]) -> None:
        """Refuses a key that has another value than the one that is served; it may be missing."""
        for key, value in supported.items():
            found = self.read(key, type(value), value)
            if found != value:
                raise self.error(key, f"is {quoted(found)}; supported: {value!r}")


def require_file(file: Path) -> int:
    """Returns a file's size in bytes, without opening it: to open a pipe waits for its writer.

    Raises:
        CheckpointError: it is something else, e.g. a folder, a pipe or a device without an end.
        OSError: it cannot be read.
    """
    found = file.stat()
    if not stat.S_ISREG(found.st_mode):
        kind = "folder" if stat.S_ISDIR(found.st_mode) else "pipe, a socket or a device"
        raise CheckpointError(f"{file}: is not a file, but a {kind}")
    return found.st_size


def quoted(value: Any) -> str:
    """Returns what a sentence says of a value of a file, of whatever size it is."""
    return _QUOTED.repr(value)


def _one_line(text: str) -> str:
    line = "".join(each if each.isprintable() else repr(each)[1:-1] for each in text)
    if len(line) <= MAX_SENTENCE_LENGTH:
        return line
    start_length = MAX_SENTENCE_LENGTH - SENTENCE_END_LENGTH
    return f"{line[:start_length]} ... {line[-SENTENCE_END_LENGTH:]}"
