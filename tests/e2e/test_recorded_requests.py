"""Requests of clients that are more than a package: written down from their sources.

Open WebUI (backend/open_webui/routers: openai.py, tasks.py) and Vercel's AI SDK with
@ai-sdk/openai-compatible (packages/openai-compatible/src/chat), both without tools.
"""

from __future__ import annotations

import base64
import json
from http.client import HTTPConnection
from typing import Any

import pytest

from gateway.local.stack import Stack
from models.demo.__main__ import PICTURES
from tests.served_model import CUSTOMERS_MODEL

QUESTION = "What do you see in the picture?"
PICTURE = {
    "type": "image_url",
    "image_url": {
        "url": "data:image/png;base64,"
        + base64.b64encode((PICTURES / "scene.png").read_bytes()).decode()
    },
}
SEEN = [{"type": "text", "text": QUESTION}, PICTURE]
FORM = {
    "type": "object",
    "properties": {"name": {"type": "string", "enum": ["cat", "dog", "panda"]}},
    "required": ["name"],
    "additionalProperties": False,
    "$schema": "http://json-schema.org/draft-07/schema#",
}
BODIES: dict[str, dict[str, Any]] = {
    "open_webui_chat": {
        "stream": True,
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Hello"},
            {"role": "assistant", "content": "Hello!"},
            {"role": "user", "content": SEEN},
        ],
        "stream_options": {"include_usage": True},
    },
    "open_webui_title": {
        "messages": [{"role": "user", "content": "### Task:\nGenerate a concise title."}],
        "stream": False,
        "max_completion_tokens": 1000,
    },
    "ai_sdk_text": {
        "messages": [{"role": "user", "content": SEEN}],
        "stream": True,
        "stream_options": {"include_usage": True},
    },
    "ai_sdk_form": {
        "response_format": {
            "type": "json_schema",
            "json_schema": {"schema": FORM, "strict": True, "name": "response"},
        },
        "messages": [{"role": "user", "content": "Name an animal."}],
    },
}


def answer(stack: Stack, body: dict[str, Any]) -> str:
    """Returns the text of an answer, whole or streamed."""
    connection = HTTPConnection(stack.gateway.address, timeout=60)
    sent = json.dumps({"model": CUSTOMERS_MODEL} | body)
    connection.request("POST", "/v1/chat/completions", sent, {"Content-Type": "application/json"})
    response = connection.getresponse()
    received = response.read().decode()
    connection.close()
    assert response.status == 200, received
    if not body.get("stream"):
        return str(json.loads(received)["choices"][0]["message"]["content"])
    *events, done = [line[6:] for line in received.split("\n") if line.startswith("data: ")]
    assert done == "[DONE]"
    choices = [choice for event in events for choice in json.loads(event)["choices"]]
    return "".join(choice["delta"].get("content") or "" for choice in choices)


@pytest.mark.parametrize("name", ["open_webui_chat", "ai_sdk_text"])
def test_picture_is_seen(served: Stack, name: str) -> None:
    assert "panda" in answer(served, BODIES[name])


def test_title_is_written(served: Stack) -> None:
    assert answer(served, BODIES["open_webui_title"])


def test_form_is_filled(served: Stack) -> None:
    assert json.loads(answer(served, BODIES["ai_sdk_form"]))["name"] in ("cat", "dog", "panda")
