"""lm-eval in both its modes: what a prompt's log probabilities choose, and what a chat answers."""

from __future__ import annotations

from pathlib import Path

from commands import run

TASKS = Path(__file__).parent / "tasks" / "lm"


def evaluate(tables: Path, kind: str, task: str, model_args: str, *arguments: str) -> None:
    """Keeps the table that it prints; a task that could not be run is a failure of the command."""
    printed = run(
        "lm-eval",
        "run",
        *("--model", kind),
        *("--tasks", task),
        *("--model_args", model_args),
        *("--include_path", TASKS),
        *arguments,
        folder=TASKS,
    )
    table = printed[printed.index("|") :]
    assert task in table
    (tables / f"lm-eval-{kind}.md").write_text(table.rstrip() + "\n", encoding="utf-8")


def test_local_completions(toy_url: str, model: str, checkpoint: str, tables: Path) -> None:
    model_args = f"model={model},base_url={toy_url}/completions,tokenizer={checkpoint}"
    evaluate(tables, "local-completions", "animals_choice", model_args)


def test_local_chat_completions(toy_url: str, model: str, tables: Path) -> None:
    model_args = f"model={model},base_url={toy_url}/chat/completions"
    evaluate(
        tables, "local-chat-completions", "animals_answer", model_args, "--apply_chat_template"
    )
