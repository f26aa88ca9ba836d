"""Both engines in one process: answers, its end, and the end of who it is for."""

from __future__ import annotations

import os
import signal
import time
from base64 import b64encode
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from openai import OpenAI

from gateway.local.engines import EngineHost
from gateway.local.processes import Service
from gateway.local.stack import Stack
from models.demo import DEMO_CHECKPOINT
from tests.e2e.conftest import PICTURES
from tests.served_model import CUSTOMERS_MODEL, SERVICE_ARGUMENTS

PATIENCE_SECONDS = 30.0


@pytest.fixture
def stack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stack]:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    arguments = (*SERVICE_ARGUMENTS, "--served-model-name", CUSTOMERS_MODEL)
    host = EngineHost(tmp_path)
    with Stack(DEMO_CHECKPOINT, tmp_path, service_arguments=arguments, engines=host) as stack:
        yield stack


def answer(stack: Stack) -> str:
    data = b64encode((PICTURES / "shapes.png").read_bytes()).decode()
    picture = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}
    question = {"type": "text", "text": "How many shapes are there?"}
    with OpenAI(base_url=f"{stack.url}/v1", api_key="none", max_retries=0) as client:
        completion = client.chat.completions.create(
            model=CUSTOMERS_MODEL,
            messages=[{"role": "user", "content": [picture, question]}],  # type: ignore[list-item, misc]
            max_tokens=8,
            temperature=0,
        )
    return completion.choices[0].message.content or ""


def ended(services: Sequence[Service]) -> bool:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while any(service.is_alive() for service in services):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def test_one_process_has_both_engines_and_ends_with_them(stack: Stack, served: Stack) -> None:
    assert answer(stack) == answer(served) != ""
    host = stack.services[0]
    os.kill(host.pid, signal.SIGKILL)
    first = stack.wait_for_an_end()
    assert (first.name, first.returncode) == ("engines", -signal.SIGKILL)
    assert ended([stack.vision, stack.llm])
    assert (stack.vision.returncode, stack.llm.returncode) == (1, 1)


@pytest.mark.slow
def test_the_host_ends_with_a_service_and_that_ends_the_other(stack: Stack) -> None:
    os.kill(stack.vision.pid, signal.SIGKILL)
    assert stack.wait_for_an_end().name == "vision"
    assert ended([stack.services[0], stack.llm])
    assert stack.llm.returncode == 1
