"""The page's libraries: what is in the tree is what is pinned, and nothing else is taken."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile

import pytest

from locks.libraries import FOLDER, PINS, ChangedError, files, integrity, pins

LIBRARIES = json.loads(PINS.read_text())
LICENSES = {"marked": "MIT", "dompurify": "Apache-2.0", "@fontsource-variable/inter": "OFL-1.1"}
OLD = {"version": "1.0", "files": {"one.js": {"source": "lib/one.js"}}}


def archive(text: str) -> bytes:
    """Returns a package as npm packs it, with one file."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        member = tarfile.TarInfo("package/lib/one.js")
        member.size = len(text)
        tar.addfile(member, io.BytesIO(text.encode()))
    return packed.getvalue()


def test_the_files_in_the_tree_are_the_pinned_ones() -> None:
    pinned = {
        name: pin["sha256"]
        for library in LIBRARIES.values()
        for name, pin in library["files"].items()
    }
    assert pinned == {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in FOLDER.iterdir()
    }


def test_each_library_has_its_licence_beside_it() -> None:
    assert {name: library["license"] for name, library in LIBRARIES.items()} == LICENSES
    for library in LIBRARIES.values():
        assert library["integrity"].startswith("sha512-")
        assert [name for name in library["files"] if name.endswith(".license.txt")]


def test_what_is_pinned_is_taken_and_anything_else_refused() -> None:
    good, changed = archive("good"), archive("evil")
    library = OLD | pins(good, OLD)
    assert files(good, library) == {"one.js": b"good"}
    with pytest.raises(ChangedError, match=r"version 1\.0"):
        files(changed, library)
    with pytest.raises(ChangedError, match=r"one\.js"):
        files(changed, library | {"integrity": integrity(changed)})
