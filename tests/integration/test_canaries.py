"""Bugs whose exceptions hold what a client sent: neither logs nor answers repeat it."""

from __future__ import annotations

import base64
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import aiohttp
import pytest

from gateway.dialects import chat
from gateway.event_stream import EventStream
from gateway.images.fetcher import ImageFetcher
from gateway.openai.answers import StreamedAnswer, WholeAnswer
from gateway.services.llm import LLMClient
from protos.process import logs
from tests.canaries import Canaries
from tests.fakes import Gateway, ScriptedLLM, ScriptedVision, chat_body, stack

BROKEN: list[tuple[Any, str]] = [
    (chat, "parse_chat_request"),
    (ImageFetcher, "fetch"),
    (LLMClient, "generate"),
    (StreamedAnswer, "event"),
    (WholeAnswer, "body"),
    (EventStream, "write"),
    (ScriptedVision, "EncodeImage"),
    (ScriptedLLM, "Generate"),
    (ScriptedLLM, "GetModelInfo"),
]
ERRORS: list[Callable[[str], Exception]] = [
    RuntimeError,
    KeyError,
    lambda text: UnicodeEncodeError("ascii", text + "\u20ac", 0, len(text) + 1, text),
    lambda text: OSError(5, text, text),
]


@pytest.mark.parametrize("fmt", ["json", "console"])
@pytest.mark.parametrize(
    ("owner", "name"), BROKEN, ids=[f"{owner.__name__}.{name}" for owner, name in BROKEN]
)
async def test_a_bugs_exception_tells_nothing(
    owner: Any,
    name: str,
    fmt: logs.LogFormat,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    word = Canaries()
    raised: list[Exception] = []

    def broken(*_: object, **__: object) -> None:
        raised.append(ERRORS[len(raised) % len(ERRORS)](word["bug"]))
        try:
            raise raised[-1]
        except Exception as error:
            raise ValueError(word["outer"]) from error

    monkeypatch.setattr(owner, name, broken)
    logs.configure("debug", fmt)
    async with stack() as gateway:
        for stream in (False, True) * 2:
            await ask(gateway, word, stream=stream)
    assert raised
    output = capsys.readouterr().err
    assert "bug" in output
    assert word.leaks({"log": output.encode()}) == {}


async def ask(gateway: Gateway, word: Canaries, *, stream: bool) -> None:
    """Sends a request with a picture; its answer must tell nothing."""
    url = "data:image/png;base64," + base64.b64encode(word["image"].encode()).decode()
    parts = [{"type": "image_url", "image_url": {"url": url}}]
    text = {"type": "text", "text": word["prompt"]}
    body = chat_body(messages=[{"role": "user", "content": [*parts, text]}], stream=stream)
    headers = {"Authorization": f"Bearer {word['key']}"}
    answer = b""
    sending = gateway.http.post("/v1/chat/completions", json=body, headers=headers)
    with suppress(aiohttp.ClientError):  # a stream breaks off
        async with sending as response:
            answer = str(response.headers).encode()
            answer += await response.read()
    assert word.leaks({"answer": answer}) == {}
