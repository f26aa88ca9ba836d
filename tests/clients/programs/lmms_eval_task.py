"""lmms-eval by its OpenAI model: a task about a picture of the demo."""

from __future__ import annotations

from pathlib import Path

import pytest
from commands import run

TASKS = Path(__file__).parent / "tasks" / "lmms"
TASK = "internvl_pictures"


def test_task(toy_url: str, model: str, tables: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    model_args = f"model_version={model},base_url={toy_url}"
    printed = run(
        "lmms-eval",
        *("--model", "openai"),
        *("--model_args", model_args),
        *("--tasks", TASK),
        *("--include_path", TASKS),
        *("--batch_size", 1),
        folder=TASKS,
    )
    table = "\n".join(line for line in printed.splitlines() if line.startswith("|"))
    assert TASK in table, printed
    (tables / "lmms-eval.md").write_text(f"{table}\n", encoding="utf-8")
