"""The file of API keys: who may call, what each may use, and the digests of their keys.

It holds no key itself, and no sentence about it repeats anything that stands where one might.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, TypeGuard

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from gateway.access.callers import ANYBODY, Caller, Policy
from gateway.access.keyring import DIGEST_OF_NOTHING, Key
from gateway.access.yaml_document import Location, YAMLDocument, YAMLDocumentError

KEY_PREFIX = "sk-internvl-"
# Into metrics and logs a name goes as it is; "none" and "other" are names of labels there.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
RESERVED_NAMES = frozenset({ANYBODY.name, "none", "other"})
DIGEST = re.compile(r"[0-9a-fA-F]{64}")
# What a mistaken field may be called in a sentence: a key or a digest is never like it.
FIELD = re.compile(r"[a-z_]{1,40}|sha256")
# By pydantic's kinds of faults, where its own words are of Python.
SENTENCES = {
    "extra_forbidden": "there is no such field",
    "missing": "this field is missing",
    "model_type": "this must be fields, each with its value",
    "sequence_str": "this must be a list",
    "too_long": "these are more than two",
    "too_short": "this is empty",
    "tuple_type": "this must be a list",
}
# Where something is wrong, and what.
Fault = tuple[Location, str]


class KeyFileError(ValueError):
    """The keys cannot be used; the message has a sentence, in a line of its own, for each fault."""


def key_name(name: str) -> str:
    """Returns a key's name.

    Raises:
        ValueError: it cannot be one.
    """
    if not NAME.fullmatch(name):
        raise ValueError(
            "a key's name has 1 to 64 letters, digits, '.', '_', '@' and '-', of which the first"
            " is a letter or a digit"
        )
    if name in RESERVED_NAMES:
        raise ValueError(f"{name!r} means something else in metrics and logs")
    return name


def _listed(value: object) -> list[object]:
    return value if isinstance(value, list) else [value]


def _digest(value: object) -> bytes:
    if isinstance(value, str) and value.startswith(KEY_PREFIX):
        raise ValueError(
            "this is a key itself, which whoever can read the file knows now: make another one, and"
            " write down its sha256, as `internvl-gateway-keys new` does"
        )
    if not (isinstance(value, str) and DIGEST.fullmatch(value)):
        raise ValueError("a key's sha256 has 64 hexadecimal digits")
    digest = bytes.fromhex(value)
    if digest == DIGEST_OF_NOTHING:
        raise ValueError("this is the sha256 of nothing, and not of a key")
    return digest


class KeyEntry(Policy):
    """A key in the file: its name, its digests, and what it may use where `defaults` do not fit."""

    name: Annotated[str, AfterValidator(key_name)]
    sha256: Annotated[
        tuple[Annotated[bytes, BeforeValidator(_digest)], ...],
        BeforeValidator(_listed),
        Field(min_length=1, max_length=2),
    ]

    def key(self, defaults: Policy) -> Key:
        """Returns the key with its whole policy."""
        own = self.model_fields_set & Policy.model_fields.keys()
        policy = defaults.model_copy(update={name: getattr(self, name) for name in own})
        return Key(Caller(name=self.name, policy=policy), self.sha256)


class KeyFile(BaseModel):
    """What the file holds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    defaults: Policy = Policy()
    keys: tuple[KeyEntry, ...]


def read_key_file(path: Path) -> list[Key]:
    """Returns the keys of a file.

    Raises:
        KeyFileError: it cannot be read, or does not hold what it must.
    """
    return parse_keys(read_text(path), str(path))


def read_text(path: Path) -> str:
    """Returns the text of a file.

    Raises:
        KeyFileError: it cannot be read.
    """
    try:
        return path.read_text("utf-8")
    except FileNotFoundError:
        raise KeyFileError(f"there is no file {path}") from None
    except OSError as error:
        raise KeyFileError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise KeyFileError(f"{path} is not text in UTF-8") from None


def _readable(path: Path) -> Path:
    path = path.expanduser().absolute()
    read_key_file(path)
    return path


# As an option: a file that can be used when the process starts.
KeysFile = Annotated[Path, AfterValidator(_readable)]


def parse_keys(text: str, title: str) -> list[Key]:
    """Returns the keys of a file's text.

    Raises:
        KeyFileError: as `read_key_file`; each sentence begins with the title and a line.
    """
    try:
        document = YAMLDocument.parse(text)
    except YAMLDocumentError as error:
        raise KeyFileError(f"{title}:{error.line}: {error}") from None
    faults = [*_double_fields(document), *_double_keys(document.data)]
    try:
        file = KeyFile.model_validate({} if document.data is None else document.data)
        keys = [entry.key(file.defaults) for entry in file.keys]
    except ValidationError as error:
        keys = []
        faults += [(each["loc"], _sentence(each)) for each in error.errors()]
    if faults:
        lines = sorted((document.line(where), _path(where), why) for where, why in faults)
        raise KeyFileError("\n".join(f"{title}:{line}: {path}{why}" for line, path, why in lines))
    return keys


def _double_fields(document: YAMLDocument) -> Iterator[Fault]:
    for where in ((), ("defaults",), *(("keys", index) for index in _entries(document.data))):
        for name in document.doubles(where):
            yield (*where, name), "this field stands twice"


def _double_keys(data: Any) -> Iterator[Fault]:
    """Yields the names and digests that another key has, also of a file with other faults."""
    seen: dict[tuple[str, str], int] = {}
    for index, entry in _entries(data).items():
        for field in ("name", "sha256"):
            for value in filter(_is_text, _listed(entry.get(field))):
                first = seen.setdefault((field, value.lower()), index)
                if first != index:
                    yield ("keys", index, field), f"keys[{first}] has the same"


def _entries(data: Any) -> dict[int, dict[Any, Any]]:
    """Returns what looks like keys, by their indexes."""
    entries = data.get("keys") if isinstance(data, dict) else None
    listed = entries if isinstance(entries, list) else []
    return {index: entry for index, entry in enumerate(listed) if isinstance(entry, dict)}


def _is_text(value: object) -> TypeGuard[str]:
    return isinstance(value, str)


def _sentence(details: ErrorDetails) -> str:
    match details["type"]:
        case "value_error":
            return str(details["ctx"]["error"])
        case kind:
            return SENTENCES.get(kind, details["msg"])


def _path(where: Location) -> str:
    """Returns a place as text, "keys[0].name: "; what may be a secret is left out."""
    text = ""
    for step in where:
        if isinstance(step, int):
            text += f"[{step}]"
        else:
            text += ("." if text else "") + (step if FIELD.fullmatch(step) else "?")
    return f"{text}: " if text else ""
