"""The gateway as a process of its own: start, memory, log, drain."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

from protos.process.settings import MIB
from tests.fakes import (
    ScriptedLLM,
    ScriptedVision,
    chat_body,
    happening,
    running_llm,
    running_vision,
)

CHAT = "/v1/chat/completions"


@asynccontextmanager
async def running_process(
    vision: ScriptedVision, llm: ScriptedLLM
) -> AsyncIterator[tuple[Process, aiohttp.ClientSession]]:
    """Runs `python -m gateway`, and yields it with an HTTP client of the port that it logs."""
    async with running_vision(vision) as vision_address, running_llm(llm) as llm_address:
        options = ["--vision-address", vision_address, "--llm-address", llm_address]
        command = [sys.executable, "-m", "gateway", "--port", "0", *options]
        process = await asyncio.create_subprocess_exec(*command, stderr=PIPE)
        try:
            event = await log_event(process, "serving")
            assert event["host"] == "127.0.0.1"
            async with aiohttp.ClientSession(f"http://127.0.0.1:{event['port']}") as http:
                yield process, http
        finally:
            if process.returncode is None:
                process.kill()
            await process.communicate()


async def log_event(process: Process, name: str) -> dict[str, Any]:
    """Returns the next log event of a name."""
    assert process.stderr
    while line := await process.stderr.readline():
        event: dict[str, Any] = json.loads(line)
        if event["event"] == name:
            return event
    raise AssertionError(f"the process ended without logging {name!r}")


async def failed_start(*options: str) -> tuple[int | None, str]:
    """Returns exit status and output of `python -m gateway` that cannot start."""
    command = [sys.executable, "-m", "gateway", *options]
    process = await asyncio.create_subprocess_exec(*command, stderr=PIPE)
    _, output = await asyncio.wait_for(process.communicate(), 30)
    return process.returncode, output.decode()


async def test_a_port_in_use_is_one_sentence() -> None:
    async with running_llm(ScriptedLLM()) as address:
        status, output = await failed_start("--port", address.rpartition(":")[2])
    assert status == 1
    (line,) = output.splitlines()
    event = json.loads(line)
    assert event["event"] == "start_failed"
    assert event["error"] == f"cannot listen on {address}: Address already in use"


async def test_a_missing_root_is_one_sentence(tmp_path: Path) -> None:
    status, output = await failed_start("--file-root", str(tmp_path / "nowhere"))
    assert status == 2
    (line,) = output.splitlines()
    assert line.startswith("--file-root: ")
    assert line.endswith(f"{tmp_path / 'nowhere'} is not a folder")


async def test_sigterm_drains() -> None:
    llm = ScriptedLLM(stalls=True)
    async with running_process(ScriptedVision(), llm) as (process, http):
        async with http.post(CHAT, json=chat_body(stream=True)) as response:
            await happening(llm.stalled)
            process.send_signal(signal.SIGTERM)
            await log_event(process, "draining")
            async with http.get("/health/ready") as ready:
                assert ready.status == 503
                assert "stopping" in (await ready.json())["reasons"]["gateway"]
            async with http.post(CHAT, json=chat_body()) as refused:
                assert refused.status == 503
            llm.released.set()
            assert (await response.text()).endswith("data: [DONE]\n\n")
        assert await process.wait() == 0


async def test_the_log_holds_no_content() -> None:
    async with running_process(ScriptedVision(), ScriptedLLM()) as (process, http):
        headers = {"x-request-id": "abc"}
        async with http.post(CHAT, json=chat_body(user="me"), headers=headers) as response:
            assert response.status == 200
        event = await log_event(process, "request")
        assert (event["request_id"], event["status"]) == ("abc", 200)
        assert not {"Hi", "Hello", "me"} & set(map(str, event.values()))


def resident_byte_counts(process: Process) -> tuple[int, int]:
    """Returns resident memory: now, and the most since `forget_peak`."""
    text = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8")
    lines = dict(line.split(":", 1) for line in text.splitlines())
    now, peak = (int(lines[key].split()[0]) * 1024 for key in ("VmRSS", "VmHWM"))
    return now, peak


def forget_peak(process: Process) -> None:
    """Begins a new measurement of the process's peak (man 5 proc, clear_refs)."""
    Path(f"/proc/{process.pid}/clear_refs").write_text("5", encoding="utf-8")


def image_messages(*images: bytes) -> list[dict[str, Any]]:
    urls = ["data:image/png;base64," + base64.b64encode(image).decode() for image in images]
    parts = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return [{"role": "user", "content": parts}]


async def test_no_embedding_is_held() -> None:
    """An image costs the gateway less than 4 MiB, also when the LLM service reads slowly.

    The first image is not measured: the allocator gets its memory from the system then. Of several
    measurements the least counts: whoever held an embedding would need 27 MiB each time.
    """
    vision = ScriptedVision(embedding_byte_count=27 * MIB)
    growths = []
    async with running_process(vision, ScriptedLLM(reading_seconds=0.01)) as (process, http):
        for index in range(4):
            forget_peak(process)
            before, _ = resident_byte_counts(process)
            body = chat_body(messages=image_messages(bytes([index])))
            async with http.post(CHAT, json=body) as response:
                assert response.status == 200
            growths.append(resident_byte_counts(process)[1] - before)
    assert len(vision.requests) == 4
    assert min(growths[1:]) < 4 * MIB


async def test_a_stream_holds_no_image() -> None:
    """A request whose tokens stream costs less than 1 MiB, whatever its images have cost.

    The first one is not measured: the process gets memory for itself then.
    """
    growths = []
    llm = ScriptedLLM(stalls=True)
    async with (
        running_process(ScriptedVision(), llm) as (process, http),
        AsyncExitStack() as streams,
    ):
        for index in range(4):
            before, _ = resident_byte_counts(process)
            images = [bytes([index, part]) * (2 * MIB) for part in range(3)]
            body = json.dumps(chat_body(stream=True, messages=image_messages(*images)))
            sending = http.post(CHAT, data=io.BytesIO(body.encode()))
            response = await streams.enter_async_context(sending)
            while b'"lo"' not in await response.content.readline():
                assert response.status == 200
            growths.append(resident_byte_counts(process)[0] - before)
        llm.released.set()
    assert sum(growths[1:]) < 3 * MIB
