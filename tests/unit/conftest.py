"""Fixtures of the doctors' tests: a made-up installation, and how to run a doctor in it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

RunDoctor = Callable[..., tuple[int, list[str]]]


@pytest.fixture
def installation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that comes first on the path of Python and on that of programs; there is no GPU."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    return tmp_path


@pytest.fixture
def run_doctor(
    installation: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> RunDoctor:
    """Runs a doctor's `main`; returns the exit status and the lines, each with single blanks."""

    def run(main: Callable[[], None], *words: str) -> tuple[int, list[str]]:
        monkeypatch.setattr(sys, "argv", ["", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        assert isinstance(ended.value.code, int)
        lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
        return ended.value.code, lines

    return run
