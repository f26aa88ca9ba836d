"""Commands that a client's package installs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def run(command: str, *arguments: object, folder: Path | None = None) -> str:
    """Runs one of this environment's commands; returns what it prints, and fails if it fails."""
    ended = subprocess.run(
        [Path(sys.executable).parent / command, *map(str, arguments)],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, f"{ended.stdout[-2000:]}\n{ended.stderr[-4000:]}"
    return ended.stdout


def options(**values: object) -> list[str]:
    """Returns --name=value of each, with hyphens."""
    return [f"--{name.replace('_', '-')}={value}" for name, value in values.items()]
