"""Control groups: those that limit this process, of version 2 and 1; how to read their files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path


def control_groups(controller: str, root: Path) -> Iterator[tuple[int, Path]]:
    """Yields version and folder of each group that this process is in, the innermost first.

    Args:
        controller: of version 1, where each has groups of its own: "memory" or "cpu".
        root: where /proc and /sys are.
    """
    for line in lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2) if line.count(":") > 1 else ("", "none", "")
        if controllers == "":
            version, top = 2, root / "sys/fs/cgroup"
        elif controller in controllers.split(","):
            version, top = 1, root / "sys/fs/cgroup" / controller
        else:
            continue
        place = top / path.lstrip("/")
        # In a container its own group may be mounted as the top.
        for folder in (place, *place.parents):
            if folder == top or top in folder.parents:
                yield version, folder


def lines(file: Path) -> list[str]:
    """Returns the lines of a file of the system; none where there is no such file."""
    try:
        return file.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except (OSError, ValueError):  # no file has a NUL in its name
        return []
