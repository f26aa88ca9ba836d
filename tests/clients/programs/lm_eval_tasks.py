"""lm-eval in both its modes: what a prompt's log probabilities choose, and what a chat answers."""

from __future__ import annotations

from pathlib import Path

from commands import run

TASKS = Path(__file__).parent / "tasks" / "lm"


def evaluate(tables: Path, kind: str, task: str, model_args: str, *arguments: str) -> str:
    """Returns and keeps the table that it prints; a task that cannot be run fails the command."""
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
    return table


def test_local_completions(toy_url: str, model: str, checkpoint: str, tables: Path) -> None:
    model_args = f"model={model},base_url={toy_url}/completions"
    by_server = evaluate(tables, "local-completions", "animals_choice", model_args)
    by_folder = evaluate(
        tables, "local-completions", "animals_choice", f"{model_args},tokenizer={checkpoint}"
    )
    assert by_server == by_folder


def test_local_chat_completions(toy_url: str, model: str, tables: Path) -> None:
    model_args = f"model={model},base_url={toy_url}/chat/completions"
    evaluate(
        tables, "local-chat-completions", "animals_answer", model_args, "--apply_chat_template"
    )
