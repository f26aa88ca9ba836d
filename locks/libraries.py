"""Takes the page's libraries from npm's registry as locks/libraries.json pins them.

Run by `make libraries`. With NAME@VERSION, as in `make libraries LIBRARIES=marked@18.2.1`, it takes
this version instead, and pins it. A mirror is named by NPM_CONFIG_REGISTRY, as for npm itself.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import sys
import tarfile
from pathlib import Path
from typing import Any
from urllib.request import urlopen

ROOT = Path(__file__).parents[1]
PINS = ROOT / "locks" / "libraries.json"
FOLDER = ROOT / "gateway" / "page" / "static" / "libraries"
REGISTRY = "https://registry.npmjs.org"
SECONDS = 60
Library = dict[str, Any]


class ChangedError(Exception):
    """What came is not what is pinned."""


def main(wanted: list[str]) -> None:
    """Writes the files of all libraries, and the pins of those that are wanted anew."""
    libraries = json.loads(PINS.read_text())
    for word in wanted:
        name, _, version = word.rpartition("@")
        libraries[name] |= {"version": version, "integrity": ""}
    for name, library in libraries.items():
        archive = _download(name, library["version"])
        if not library["integrity"]:
            library |= pins(archive, library)
        for file, data in files(archive, library).items():
            (FOLDER / file).write_bytes(data)
        print(f"{name} {library['version']}: {', '.join(library['files'])}")
    PINS.write_text(json.dumps(libraries, indent=2) + "\n")


def _download(name: str, version: str) -> bytes:
    """Returns a package's archive; of "@scope/name" its file is called after the name alone."""
    registry = os.environ.get("NPM_CONFIG_REGISTRY", REGISTRY).rstrip("/")
    url = f"{registry}/{name}/-/{name.rpartition('/')[2]}-{version}.tgz"
    with urlopen(url, timeout=SECONDS) as answer:  # noqa: S310 - by its hash
        data: bytes = answer.read()
    return data


def files(archive: bytes, library: Library) -> dict[str, bytes]:
    """Returns a library's files by their names here.

    Raises:
        ChangedError: the archive, or a file in it, has another hash than is pinned.
    """
    if integrity(archive) != library["integrity"]:
        raise ChangedError(f"the archive of version {library['version']} is not the pinned one")
    members = _members(archive)
    found = {name: members[pin["source"]] for name, pin in library["files"].items()}
    for name, data in found.items():
        if hashlib.sha256(data).hexdigest() != library["files"][name]["sha256"]:
            raise ChangedError(f"{name} is not the pinned file")
    return found


def pins(archive: bytes, library: Library) -> Library:
    """Returns what pins a library to an archive: its hash, and those of the files taken from it."""
    members = _members(archive)
    taken = {
        name: {
            "source": pin["source"],
            "sha256": hashlib.sha256(members[pin["source"]]).hexdigest(),
        }
        for name, pin in library["files"].items()
    }
    return {"integrity": integrity(archive), "files": taken}


def integrity(archive: bytes) -> str:
    """Returns the hash of an archive as npm's own lock files write it."""
    return f"sha512-{base64.b64encode(hashlib.sha512(archive).digest()).decode()}"


def _members(archive: bytes) -> dict[str, bytes]:
    """Returns the files of an archive by their paths below its one folder."""
    with tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz") as tar:
        return {
            member.name.partition("/")[2]: data.read()
            for member in tar.getmembers()
            if (data := tar.extractfile(member))
        }


if __name__ == "__main__":
    main(sys.argv[1:])
