"""Libraries and programs that look installed to a process which gets the folder on its path."""

from __future__ import annotations

from pathlib import Path

# PyTorch as far as a doctor asks it, which imports in no time.
TORCH_WITHOUT_CUDA = """\
from types import SimpleNamespace
cuda = SimpleNamespace(is_available=lambda: False)
version = SimpleNamespace(cuda=None)
"""
KILLS_ITS_PROCESS = "import os\nos.kill(os.getpid(), 9)"


def write_library(folder: Path, name: str, version: str, source: str) -> None:
    """Writes a package whose import runs the source, with what pip would note of it."""
    (folder / name).mkdir()
    (folder / name / "__init__.py").write_text(source, encoding="utf-8")
    notes = folder / f"{name}-{version}.dist-info"
    notes.mkdir()
    (notes / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


def write_program(folder: Path, name: str, script: str) -> None:
    """Writes a shell script that can be run by its name."""
    file = folder / name
    file.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    file.chmod(0o755)
