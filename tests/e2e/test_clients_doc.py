"""The Python blocks of docs/clients.md, run as they stand."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from gateway.local.stack import Stack

ROOT = Path(__file__).parents[2]
PICTURE = "models/demo/pictures/scene.png"


def block(mark: str) -> str:
    """Returns the one Python block that holds these words."""
    text = (ROOT / "docs" / "clients.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)
    (found,) = [each for each in blocks if mark in each]
    return str(found)


def run(script: Path, *arguments: str) -> str:
    completed = subprocess.run(
        [sys.executable, script, *arguments],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert completed.returncode == 0, completed.stderr
    return completed.stdout


def test_openai_block(served: Stack, tmp_path: Path) -> None:
    script = tmp_path / "openai_client.py"
    script.write_text(block("include_usage").replace("http://127.0.0.1:8000", served.url))
    answer = run(script)
    assert "panda" in answer
    assert "prompt_tokens=" in answer


@pytest.mark.slow
def test_form_block(served: Stack, tmp_path: Path) -> None:
    script = tmp_path / "form_client.py"
    script.write_text(block("class Answer").replace("http://127.0.0.1:8000", served.url))
    answers = re.findall(r"^(\d) animal='(?:cat|dog|panda)' likes='", run(script), re.M)
    assert answers == ["0", "1"]


@pytest.mark.slow
def test_anthropic_block(served: Stack, tmp_path: Path) -> None:
    script = tmp_path / "anthropic_client.py"
    script.write_text(block("anthropic.Anthropic").replace("http://127.0.0.1:8000", served.url))
    answer = run(script)
    assert re.match(r"\d+ tokens\n", answer)
    assert "panda" in answer
    assert "output_tokens=" in answer


@pytest.mark.slow
def test_tools_block(served: Stack, tmp_path: Path) -> None:
    script = tmp_path / "tools_client.py"
    script.write_text(block("def favourite_food").replace("http://127.0.0.1:8000", served.url))
    called, answer = run(script).splitlines()
    assert re.fullmatch(r"favourite_food {'animal': '(cat|dog|panda)'}", called)
    assert answer


def test_grpc_blocks(served: Stack, tmp_path: Path) -> None:
    vision_client, llm_client = tmp_path / "vision_client.py", tmp_path / "llm_client.py"
    vision_client.write_text(block("def encode("))
    llm_client.write_text(block("LLMServiceStub"))
    vision, llm = (f"127.0.0.1:{service.port}" for service in (served.vision, served.llm))
    assert run(vision_client, vision, PICTURE).startswith("1 tiles, embedding [256, 256]")
    answer = run(llm_client, vision, llm, PICTURE)
    assert "panda" in answer
    assert "output_token_count" in answer
