"""From what a user typed to the folder of a checkpoint: a path, a hub id, or the hub's cache.

Hugging Face keeps a model's files in `models--ORGANISATION--NAME` of its cache: `blobs` has them by
their digests, `snapshots/COMMIT` has links to them by their names, `refs/main` holds the commit of
the branch main at the last download. Nothing here asks the network.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator

from protos.checkpoint.section import CheckpointError

HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
ENTRY_PREFIX = "models--"
SNAPSHOTS = "snapshots"
CONFIG_FILE = "config.json"
# Of the checkpoints that a sentence names in place of a missing one.
HINT_COUNT = 3


def located(typed: Path) -> Path:
    """Returns the folder that is meant, absolute.

    Of an entry of the hub's cache it is the snapshot. What cannot be found is left as it is, a hub
    id as a relative path: `require_folder` says why.
    """
    folder = Path(os.path.expanduser(typed)).absolute()
    if os.path.isdir(folder):
        entry = _entry(folder)
        return (entry and _snapshot(entry)) or folder
    if HUB_ID.fullmatch(str(typed)):
        return _snapshot(hub_cache() / _entry_name(str(typed))) or typed
    return folder


# The type of every program's option --checkpoint.
CheckpointFolder = Annotated[Path, AfterValidator(located)]


def require_folder(folder: Path) -> None:
    """Refuses what `located` did not find.

    Raises:
        CheckpointError: there is no such folder, or it is an entry of the hub's cache from which no
            snapshot can be chosen.
    """
    try:
        folder.stat()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise CheckpointError(_missing(folder)) from error
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot be read: {error.strerror}") from error
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is a file; give the folder that it is in, {folder.parent}")
    if (entry := _entry(folder)) and _snapshot(entry) is None:
        raise CheckpointError(_unclear(entry))


def model_name(folder: Path) -> str:
    """Returns the name under which a checkpoint is served by default: the folder's, or the hub's.

    The hub's is that of the repository: a snapshot's folder is named after a commit.
    """
    resolved = folder.resolve()
    entry = resolved.parent.parent
    if resolved.parent.name == SNAPSHOTS and entry.name.startswith(ENTRY_PREFIX):
        return entry.name.rpartition("--")[2]
    return resolved.name


def hub_cache() -> Path:
    """Returns where the libraries of Hugging Face keep what they download."""
    variables = os.environ
    home = variables.get("XDG_CACHE_HOME") or "~/.cache"
    home = variables.get("HF_HOME") or f"{home}/huggingface"
    cache = variables.get("HF_HUB_CACHE") or variables.get("HUGGINGFACE_HUB_CACHE") or f"{home}/hub"
    return Path(os.path.expanduser(os.path.expandvars(cache))).absolute()


def checkpoints_in(folder: Path) -> Iterator[str]:
    """Yields the names of the folders right below that look like checkpoints."""
    try:
        children = [child for child in folder.iterdir() if child.is_dir()]
    except OSError:
        return
    for child in sorted(children):
        if child.name.startswith(ENTRY_PREFIX) or os.path.lexists(child / CONFIG_FILE):
            yield child.name


def _entry(folder: Path) -> Path | None:
    """Returns the entry of the hub's cache that was meant by its folder, or by its snapshots'."""
    entry = folder.parent if folder.name == SNAPSHOTS else folder
    is_entry = entry.name.startswith(ENTRY_PREFIX) and not os.path.lexists(entry / CONFIG_FILE)
    return entry if is_entry else None


def _entry_name(hub_id: str) -> str:
    return ENTRY_PREFIX + hub_id.replace("/", "--")


def _snapshot(entry: Path) -> Path | None:
    """Returns what refs/main names; without it, the only snapshot that there is."""
    snapshots = _snapshots(entry)
    if main := _main(entry):
        return entry / SNAPSHOTS / main if main in snapshots else None
    return entry / SNAPSHOTS / snapshots[0] if len(snapshots) == 1 else None


def _snapshots(entry: Path) -> list[str]:
    try:
        return sorted(child.name for child in (entry / SNAPSHOTS).iterdir() if child.is_dir())
    except OSError:
        return []


def _main(entry: Path) -> str:
    """Returns the commit that refs/main names; empty without the file."""
    try:
        return (entry / "refs" / "main").read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return ""


def _unclear(entry: Path) -> str:
    """Says why no snapshot was chosen, and which there are."""
    hub_id = entry.name.removeprefix(ENTRY_PREFIX).replace("--", "/")
    snapshots, main = _snapshots(entry), _main(entry)
    if not snapshots:
        return f"{entry} has no snapshot; `hf download {hub_id}` fetches one"
    choices = f"give one of {', '.join(snapshots)} in {entry / SNAPSHOTS}"
    if main:
        fetch = f"`hf download {hub_id}` fetches it"
        return f"{entry}: refs/main names {main}, which is not there; {fetch}, or {choices}"
    return f"{entry} has {len(snapshots)} snapshots, and no refs/main that names one; {choices}"


def _missing(folder: Path) -> str:
    """Says what there is in place of a folder."""
    if folder.is_symlink():
        return f"{folder} is a link to {os.readlink(folder)}, which is not there"
    if not folder.is_absolute():
        return _missing_of_hub(str(folder))
    nearest = next(parent for parent in folder.parents if os.path.isdir(parent))
    sentence = f"there is no folder {folder}"
    if nearest != folder.parent:
        return f"{sentence}; the nearest that is there is {nearest}"
    alike = difflib.get_close_matches(folder.name, checkpoints_in(nearest), HINT_COUNT, cutoff=0)
    return f"{sentence}; beside it: {', '.join(alike)}" if alike else sentence


def _missing_of_hub(hub_id: str) -> str:
    entry = hub_cache() / _entry_name(hub_id)
    if entry.is_dir():
        return _unclear(entry)
    return (
        f"there is no folder {hub_id}, and no such model in the hub's cache, {hub_cache()};"
        f" `hf download {hub_id}` fetches it"
    )
