"""The names of the tensors that a checkpoint has, against those that its config describes."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from protos.checkpoint.section import CheckpointError

# More would bury the sentence: a checkpoint of another kind differs in all of its tensors.
LISTED_COUNT = 2


def require_names(folder: Path, stored: Collection[str], described: Collection[str]) -> None:
    """Refuses a checkpoint that lacks a tensor or has one too many.

    Args:
        folder: the checkpoint.
        stored: names of its tensors.
        described: names of those that its config asks for.

    Raises:
        CheckpointError: the first of the names, and how many there are.
    """
    complaints = []
    if missing := sorted(set(described) - set(stored)):
        complaints.append(f"lacks {_counted(missing, 'tensor')}")
    if unexpected := sorted(set(stored) - set(described)):
        complaints.append(f"has {_counted(unexpected, 'unexpected tensor')}")
    if complaints:
        raise CheckpointError(f"{folder}: the checkpoint {', and it '.join(complaints)}")


def _counted(names: list[str], title: str) -> str:
    """Returns e.g. "3 tensors, among them a, b"; of one alone its name."""
    if len(names) == 1:
        return f"the {title} {names[0]}"
    return f"{len(names)} {title}s, among them {', '.join(names[:LISTED_COUNT])}"
