"""The usage log and the log's lines over HTTP: which requests have one, and what it says."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from structlog.testing import capture_logs

from gateway.access import usage_log
from gateway.access.key_file import KeyFileError
from gateway.app import running_gateway
from gateway.events import ChatEvent
from gateway.services.llm import Generation
from gateway.settings import Settings
from protos.errors import ContextLengthError, InvalidArgumentError, UnavailableError
from protos.process import logs
from tests.fakes import Gateway, ScriptedLLM, ScriptedVision, chat_body, happening, stack
from tests.integration.test_gateway_process import failed_start, running_process
from tests.request_lines import gateway_lines

CHAT = "/v1/chat/completions"
SOON_SECONDS = 5.0


def usage_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def about(*images: bytes) -> list[dict[str, Any]]:
    urls = ["data:image/png;base64," + base64.b64encode(image).decode() for image in images]
    parts = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": "a secret"}]}]


async def post(gateway: Gateway, path: str, body: Any, request_id: str = "") -> int:
    headers = {"x-request-id": request_id} if request_id else {}
    async with gateway.http.post(path, json=body, headers=headers) as response:
        await response.read()
        return response.status


async def test_a_line_tells_who_used_what(tmp_path: Path) -> None:
    path = tmp_path / "usage"
    async with stack(usage_log=path) as gateway:
        body = chat_body(messages=about(b"cat", b"dog", b"cat"), user="a secret")
        assert await post(gateway, CHAT, body, "one") == 200
        (line,) = usage_lines(path)  # it was there before the answer's end
    assert 0 < line.pop("total_seconds") < SOON_SECONDS
    assert line.pop("time").endswith("+00:00")
    assert line == {
        "request_id": "one",
        "caller": "anybody",
        "route": CHAT,
        "model": "scripted",
        "status": 200,
        "outcome": "ok",
        "body_byte_count": len(json.dumps(body)),
        "image_count": 3,
        "reused_image_count": 1,
        "cached_image_count": 0,
        "encoded_image_count": 2,
        "encoded_tile_count": 6,
        "prompt_token_count": 30 + 3 * 256,
        "image_token_count": 3 * 256,
        "cached_token_count": 16,
        "output_token_count": 3,
    }


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_ends_after_its_line_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    """A named pipe that is full holds the line up, and so the answer's end."""
    monkeypatch.setattr(usage_log, "PATIENCE_SECONDS", 60.0)
    path = tmp_path / "pipe"
    os.mkfifo(path)
    pipe = os.open(path, os.O_RDWR | os.O_NONBLOCK)
    try:
        while True:
            os.write(pipe, b" " * 512)
    except BlockingIOError:
        pass
    async with stack(usage_log=path) as gateway:
        request = asyncio.create_task(gateway.read_chat(stream=stream))
        done, _ = await asyncio.wait((request,), timeout=0.5)
        assert not done
        os.read(pipe, 65536)
        assert b"Hel" in await asyncio.wait_for(request, SOON_SECONDS)
    os.close(pipe)


async def test_a_request_with_many_prompts_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "usage"
    async with stack(usage_log=path) as gateway:
        for stream in (False, True):
            body = {"model": "scripted", "prompt": ["a"] * 20, "n": 2, "stream": stream}
            assert await post(gateway, "/v1/completions", body) == 200
    lines = usage_lines(path)
    assert [line["prompt_token_count"] for line in lines] == [20 * 30] * 2
    assert [line["output_token_count"] for line in lines] == [20 * 2 * 3] * 2


@pytest.mark.parametrize("stream", [False, True])
async def test_each_end_has_its_outcome(tmp_path: Path, stream: bool) -> None:
    path = tmp_path / "usage"
    llm = ScriptedLLM(failures=[ContextLengthError("long"), InvalidArgumentError("no", field="n")])
    outcomes = []
    async with stack(llm=llm, usage_log=path, max_body_byte_count=5000) as gateway:
        for _ in range(2):
            await post(gateway, CHAT, chat_body(stream=stream))
        await post(gateway, CHAT, chat_body(model="a secret", stream=stream))
        await post(gateway, CHAT, chat_body(stream=stream, user="x" * 5000))
        llm.late_failure = UnavailableError("gone")
        status = await post(gateway, CHAT, chat_body(stream=stream))
        outcomes = [(line["status"], line["outcome"]) for line in usage_lines(path)]
    assert outcomes == [
        (400, "CONTEXT_LENGTH_EXCEEDED"),
        (400, "INVALID_FIELD"),
        (404, "NOT_FOUND"),
        (413, "refused"),
        (status, "SERVICE_UNAVAILABLE"),
    ]
    assert status == (200 if stream else 503)
    models = [line["model"] for line in usage_lines(path)]
    assert models == ["scripted", "scripted", None, None, "scripted"]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_has_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    path, llm = tmp_path / "usage", ScriptedLLM(stalls=True)
    has_read_all = asyncio.Event()
    read, numbers = Generation.read, itertools.count()

    async def noted_read(generation: Generation) -> ChatEvent | None:
        if next(numbers) == len(llm.texts):  # the one that waits for what does not come
            has_read_all.set()
        return await read(generation)

    monkeypatch.setattr(Generation, "read", noted_read)
    async with stack(llm=llm, usage_log=path) as gateway:
        request = asyncio.create_task(gateway.read_chat(stream=stream))
        await happening(has_read_all)
        request.cancel()
        await asyncio.gather(request, return_exceptions=True)
        await happening(gateway.llm.cancelled)
    (line,) = usage_lines(path)
    assert (line["status"], line["outcome"]) == (499, "client_gone")
    # As many tokens as the service had told before it stalled.
    assert (line["prompt_token_count"], line["output_token_count"]) == (30, 3)


async def test_what_is_no_use_has_none(tmp_path: Path) -> None:
    path = tmp_path / "usage"
    async with stack(usage_log=path) as gateway:
        for get in ("/health/live", "/v1/models", "/version", "/nowhere"):
            await gateway.get(get)
        for missed in ("/nowhere", "/v1/models"):
            await post(gateway, missed, {})
        for page in ("https://elsewhere.example", "null"):
            headers = {"Origin": page, "Sec-Fetch-Site": "cross-site"}
            async with gateway.http.post(CHAT, json=chat_body(), headers=headers) as response:
                assert response.status == 403  # nobody knows who asks
        assert await post(gateway, "/tokenize", {"model": "scripted", "prompt": "a"}) == 200
        assert await post(gateway, "/detokenize", {"model": "scripted", "tokens": [1]}) == 200
    assert [line["route"] for line in usage_lines(path)] == ["/tokenize", "/detokenize"]


async def test_a_file_that_cannot_be_opened_is_one_sentence(tmp_path: Path) -> None:
    status, output = await failed_start("--port=0", f"--usage-log={tmp_path}/nowhere/usage")
    (line,) = output.splitlines()
    assert status == 1
    assert json.loads(line)["error"].startswith(f"cannot write the usage log {tmp_path}/nowhere")


async def test_a_start_that_fails_later_closes_what_is_open(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (keys := tmp_path / "keys.yaml").write_text(f"keys: [{{name: a, sha256: {'ab' * 32}}}]\n")
    settings = Settings(port=0, usage_log=tmp_path / "usage", api_keys_file=keys)
    keys.write_text("half a file")
    logs.configure("info", "json")
    with pytest.raises(KeyFileError):
        async with running_gateway(settings):
            pass
    await asyncio.get_running_loop().shutdown_asyncgens()  # as at the process's end
    assert capsys.readouterr().err == ""


@pytest.mark.slow
async def test_a_full_disk_fails_no_request_and_loses_no_line() -> None:
    """What could not be written is in the log at the end."""
    ids = [f"full.{number}" for number in range(20)]
    async with running_process(
        ScriptedVision(), ScriptedLLM(), "--usage-log=/dev/full", "--metrics-port=0"
    ) as (process, http):
        statuses = [await chat_status(http, request_id) for request_id in ids]
        process.terminate()
        _, log = await process.communicate()
    assert statuses == [200] * len(ids)
    events = [json.loads(line) for line in log.splitlines()]
    (failed,) = [event for event in events if event["event"] == "usage_log_failed"]
    assert failed["error"] == "No space left on device"
    lost = [event for event in events if event["event"] == "usage_line_not_written"]
    assert [event["request_id"] for event in lost] == ids
    assert lost[0]["output_token_count"] == 3


async def chat_status(http: aiohttp.ClientSession, request_id: str) -> int:
    headers = {"x-request-id": request_id}
    async with http.post(CHAT, json=chat_body(), headers=headers) as response:
        await response.read()
        return response.status


async def becomes_true(condition: Callable[[], bool]) -> None:
    for _ in range(500):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it has not happened in time")


async def test_sighup_makes_a_renamed_file_anew(tmp_path: Path) -> None:
    path, rotated = tmp_path / "usage", tmp_path / "usage.1"
    async with running_process(ScriptedVision(), ScriptedLLM(), f"--usage-log={path}") as (
        process,
        http,
    ):
        assert await chat_status(http, "before") == 200
        path.rename(rotated)
        process.send_signal(signal.SIGHUP)
        await becomes_true(path.exists)
        assert path.read_text() == ""
        assert await chat_status(http, "after") == 200
    assert [line["request_id"] for line in usage_lines(rotated)] == ["before"]
    assert [line["request_id"] for line in usage_lines(path)] == ["after"]


async def levels(gateway: Gateway, path: str) -> list[str]:
    with capture_logs() as logs:
        await gateway.get(path)
    return [line["log_level"] for line in gateway_lines(logs)]


@pytest.mark.parametrize(
    ("shown", "health", "models"),
    [("failed", "debug", "debug"), ("requests", "debug", "info"), ("all", "info", "info")],
)
async def test_the_access_log_has_the_requests_that_were_asked_for(
    shown: str, health: str, models: str
) -> None:
    async with stack(access_log=shown) as gateway:
        assert await levels(gateway, "/health/live") == [health]
        assert await levels(gateway, "/v1/models") == [models]
    async with stack(access_log=shown, closed=["llm"]) as gateway:
        assert await levels(gateway, "/health/ready") == ["warning"]
        assert await levels(gateway, "/v1/models") == ["warning"]


async def test_a_stream_that_breaks_off_is_a_warning_and_a_refusal_none() -> None:
    llm = ScriptedLLM(failures=[InvalidArgumentError("no")], late_failure=UnavailableError("gone"))
    with capture_logs() as logs:
        async with stack(llm=llm) as gateway:
            for _ in range(2):
                await gateway.read_chat(stream=True)
    lines = gateway_lines(logs)
    assert [(line["status"], line["log_level"]) for line in lines] == [
        (400, "info"),
        (200, "warning"),
    ]
    assert lines[0]["client_address"] == "127.0.0.1"
    assert lines[0]["caller"] == "anybody"
