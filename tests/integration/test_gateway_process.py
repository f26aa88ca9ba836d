"""The gateway as a process of its own: start, memory, log, drain."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import resource
import signal
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest
import trustme

from protos.process.settings import MIB
from tests.fakes import (
    ScriptedLLM,
    ScriptedVision,
    chat_body,
    happening,
    running_llm,
    running_vision,
)
from tests.https import issue

CHAT = "/v1/chat/completions"


@asynccontextmanager
async def running_process(
    vision: ScriptedVision, llm: ScriptedLLM, *more_options: str
) -> AsyncIterator[tuple[Process, aiohttp.ClientSession]]:
    """Runs `python -m gateway`, and yields it with an HTTP client of the port that it logs."""
    async with running_vision(vision) as vision_address, running_llm(llm) as llm_address:
        options = ["--vision-address", vision_address, "--llm-address", llm_address, *more_options]
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


WARNED = {
    "--api-key=none-that-guesses-it": ["connections_plain"],
    "--tls-certificate-file": ["callers_unknown"],
    "": ["connections_plain", "callers_unknown"],
}


@pytest.mark.parametrize("option", WARNED)
async def test_a_port_that_others_reach_is_warned_of(option: str, tmp_path: Path) -> None:
    files = issue(trustme.CA(), tmp_path, "chat.example")
    options = [option] if option else []
    if option.startswith("--tls"):
        options += [str(files.certificate), "--tls-key-file", str(files.key)]
    command = [sys.executable, "-m", "gateway", "--port", "0", "--host", "0.0.0.0", *options]
    process = await asyncio.create_subprocess_exec(*command, stderr=PIPE)
    assert process.stderr
    events = []
    try:
        while (event := json.loads(await process.stderr.readline()))["event"] != "serving":
            events.append(event["event"])
    finally:
        process.kill()
        await process.communicate()
    assert events == WARNED[option]


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


@pytest.mark.parametrize("stream", [True, False])
async def test_what_runs_at_the_end_of_the_drain_is_told(stream: bool) -> None:
    llm = ScriptedLLM(stalls=True)
    async with running_process(ScriptedVision(), llm, "--drain-seconds", "0.1") as (process, http):
        request = asyncio.create_task(read_chat(http, json=chat_body(stream=stream)))
        await happening(llm.stalled)
        process.send_signal(signal.SIGTERM)
        status, body = await request  # an answer that breaks off would fail here
        assert await process.wait() == 0
    assert status == (200 if stream else 503)
    assert json.loads(body.rpartition("data: ")[2])["error"] == {
        "message": "the gateway has stopped before the end of the answer",
        "type": "server_error",
        "param": None,
        "code": "service_unavailable",
    }


async def read_chat(http: aiohttp.ClientSession, **content: Any) -> tuple[int, str]:
    """Returns status and body of a chat completion."""
    async with http.post(CHAT, **content) as response:
        return response.status, await response.text()


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="another process's limits are Linux's")
async def test_want_of_descriptors_is_survived_and_seldom_logged() -> None:
    async with running_process(ScriptedVision(), ScriptedLLM()) as (process, http):
        limit = psutil.Process(process.pid).num_fds() + 10
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (limit, limit))
        port = http._base_url.port if http._base_url else 0
        flood = [await asyncio.open_connection("127.0.0.1", port) for _ in range(60)]
        await log_event(process, "out_of_descriptors")
        async with http.get("/health/live") as response:
            assert response.status == 200
        for _, writer in flood:
            writer.transport.abort()
        process.terminate()
        _, log = await process.communicate()
    assert len(log) < 10_000
    assert b"Traceback" not in log


def numbered(pattern: bytes, count: int) -> bytes:
    return b",".join(pattern % number for number in range(count))


@pytest.mark.slow
async def test_no_body_stops_health_or_fills_the_memory() -> None:
    """Without limits the first alone would freeze the gateway for 15 s, and take 1.5 GB."""
    bodies = [
        numbered(b'"%x":1', 1_500_000),
        b'"metadata":[' + b"[]," * 1_300_000 + b"[]]",
        b'"logit_bias":{' + numbered(b'"x%x":1', 400_000) + b"}",
        b'"metadata":' + b"[" * 4_000_000,
        b'"user":"' + b"\\u0000" * 10_000_000 + b'"',
    ]
    async with running_process(ScriptedVision(), ScriptedLLM()) as (process, http):
        assert (await read_chat(http, json=chat_body()))[0] == 200
        forget_peak(process)
        before, _ = resident_byte_counts(process)
        slowest_seconds = 0.0
        for fields in bodies:
            body = b'{"model":"scripted","messages":[{"role":"user","content":"a"}],%b}' % fields
            request = asyncio.create_task(read_chat(http, data=io.BytesIO(body)))
            while not request.done():
                begin = time.monotonic()
                async with http.get("/health/live") as response:
                    assert response.status == 200
                slowest_seconds = max(slowest_seconds, time.monotonic() - begin)
                await asyncio.sleep(0.01)
            assert (await request)[0] == 400
        _, peak = resident_byte_counts(process)
    assert slowest_seconds < 2
    assert peak - before < 3 * 64 * MIB


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


@pytest.mark.slow
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


@pytest.mark.slow
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
