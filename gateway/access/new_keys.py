"""How a key is made, and how it comes into the file."""

from __future__ import annotations

import fcntl
import os
import secrets
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml

from gateway.access.key_file import KEY_PREFIX, KeyFileError, parse_keys, read_text
from gateway.access.keyring import digest_of
from gateway.access.yaml_document import YAMLDocument

KEY_BYTE_COUNT = 32


def new_key() -> str:
    """Returns a key that nobody has: a prefix by which it is known for one, and 256 random bits."""
    return KEY_PREFIX + secrets.token_urlsafe(KEY_BYTE_COUNT)


def entry_of(name: str, key: str) -> str:
    """Returns the lines of YAML that stand for a key in the file."""
    return yaml.safe_dump(
        [{"name": name, "sha256": digest_of(key.encode()).hex()}], sort_keys=False
    )


def with_entry(text: str, entry: str) -> str:
    """Returns a file's text with one more entry, behind the others; all else stays as it was.

    Raises:
        KeyFileError: its keys are not a list of lines that begin with "-".
    """
    node, is_there = YAMLDocument.parse(text).node(("keys",))
    if not is_there or not isinstance(node, yaml.SequenceNode):
        raise KeyFileError("there are no keys in it, where the new one could be added")
    if node.flow_style and node.value:
        raise KeyFileError('its keys stand within "[]"; write each in lines of its own, after "- "')
    lines = text.splitlines(keepends=True)
    if not node.value:  # keys: []
        start, end = node.start_mark, node.end_mark
        rest = lines[end.line][end.column :]
        line = lines[start.line][: start.column].rstrip() + rest.rstrip("\n") + "\n"
        return "".join([*lines[: start.line], line, entry, *lines[end.line + 1 :]])
    last = _last_line(node)
    if not lines[last].endswith("\n"):
        lines[last] += "\n"
    indent = " " * node.start_mark.column
    entry = "".join(indent + line for line in entry.splitlines(keepends=True))
    return "".join([*lines[: last + 1], entry, *lines[last + 1 :]])


def _last_line(node: yaml.Node) -> int:
    """Returns the index of the last line with something of a node in it."""
    if isinstance(node, yaml.CollectionNode) and not node.flow_style and node.value:
        last = node.value[-1]
        return _last_line(last[1] if isinstance(last, tuple) else last)
    return int(node.end_mark.line)


def add_to_file(path: Path, name: str, key: str) -> None:
    """Adds a key to the file, which is made if it is not there; readers see all of it or nothing.

    Raises:
        KeyFileError: there is a key of this name, or the file cannot be used.
        OSError: it cannot be written.
    """
    path = path.resolve()  # so that a link stays one
    with _locked(path.parent):
        text = read_text(path) if path.exists() else "keys: []\n"
        if name.lower() in {each.caller.name.lower() for each in parse_keys(text, str(path))}:
            raise KeyFileError(f"{path} has a key named {name} already")
        text = with_entry(text, entry_of(name, key))
        parse_keys(text, str(path))
        _replace(path, text)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Lets nobody else add a key meanwhile."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _replace(path: Path, text: str) -> None:
    """Writes a file anew: the owner's alone where there was none, else with its owner and mode."""
    with tempfile.NamedTemporaryFile("w", dir=path.parent, encoding="utf-8", delete=False) as file:
        try:
            if path.exists():
                before = path.stat()
                os.fchown(file.fileno(), before.st_uid, before.st_gid)
                os.fchmod(file.fileno(), stat.S_IMODE(before.st_mode) & ~stat.S_IRWXO)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise
