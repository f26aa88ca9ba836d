"""The three processes' command lines: help for every option, one sentence for every mistake."""

from __future__ import annotations

import subprocess
import sys

import pytest

MODULES = ("vision_service", "llm_service", "gateway")


def run(module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    "module",
    [pytest.param("vision_service", marks=pytest.mark.slow), "llm_service", "gateway"],
)
def test_help_explains_the_options(module: str) -> None:
    completed = run(module, "--help")
    assert completed.returncode == 0
    for option in ("--host", "--port", "--drain-seconds", "--log-format"):
        assert option in completed.stdout
    assert "On SIGTERM, how long calls in flight may still run." in completed.stdout


@pytest.mark.parametrize(
    "module",
    ["vision_service", pytest.param("llm_service", marks=pytest.mark.slow), "gateway"],
)
def test_wrong_option_is_one_line(module: str) -> None:
    checkpoint = () if module == "gateway" else ("--checkpoint", ".")
    completed = run(module, *checkpoint, "--port", "70000")
    assert completed.returncode == 2
    assert completed.stderr == "--port: Input should be less than or equal to 65535; it is 70000\n"


@pytest.mark.parametrize(
    "module", ["vision_service", pytest.param("llm_service", marks=pytest.mark.slow)]
)
def test_missing_checkpoint_is_one_line(module: str) -> None:
    completed = run(module, "--checkpoint", "/nowhere")
    assert completed.returncode == 2
    assert completed.stderr == "--checkpoint: there is no folder /nowhere\n"
