"""One client's connections keep nobody else out; and what is told to who speaks no HTTP."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, cast

import psutil
import pytest
import structlog.testing
import trustme

from gateway import connections
from tests.fakes import SOON_SECONDS, Gateway, ScriptedLLM, chat_body, happening, stack
from tests.https import https_options, issue
from tests.request_lines import gateway_lines

pytestmark = [pytest.mark.timeout(60), pytest.mark.usefixtures("transport")]
CHAT = "/v1/chat/completions"
LIVE = b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n"
LAST_LIVE = LIVE.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")


@pytest.fixture(params=["plain", "TLS"])
def transport(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Has each test's gateway speak HTTP in plain text, and over TLS."""
    if request.param == "TLS":
        files = issue(trustme.CA(), tmp_path, "127.0.0.1")
        for option, path in https_options(files).items():
            monkeypatch.setenv(f"INTERNVL_GATEWAY_{option.upper()}", str(path))


def chat_request(**fields: Any) -> bytes:
    """Returns the bytes of a chat request."""
    body = json.dumps(chat_body(**fields)).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def port_of(gateway: Gateway) -> int:
    return int(gateway.url.rpartition(":")[2])


@asynccontextmanager
async def connected(
    gateway: Gateway, data: bytes = b""
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Connects to the gateway, and sends the data."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port_of(gateway), ssl=gateway.tls)
    writer.write(data)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def answer_to(gateway: Gateway, data: bytes) -> bytes:
    """Returns all that comes until the gateway closes the connection."""
    async with connected(gateway, data) as (reader, _):
        return await asyncio.wait_for(reader.read(), SOON_SECONDS)


def error_of(answer: bytes) -> dict[str, Any]:
    """Returns OpenAI's error in an HTTP answer."""
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"content-type: application/json" in head.lower()
    error: dict[str, Any] = json.loads(body)["error"]
    return error


HOST = b"Host: x\r\n"
POST = f"POST {CHAT} HTTP/1.1\r\n".encode() + HOST
MALFORMED = {
    "request line": b"SECRET\r\n\r\n",
    "TLS": b"\x16\x03\x01SECRET\r\n\r\n",
    "version": b"GET /SECRET HTTP/9.9\r\n" + HOST + b"\r\n",
    "header": b"GET / HTTP/1.1\r\n" + HOST + b"SECRET bad\r\n\r\n",
    "folded header": b"GET / HTTP/1.1\r\n" + HOST + b"A: b\r\n SECRET\r\n\r\n",
    "zero byte": b"GET / HTTP/1.1\r\n" + HOST + b"A: SECRET\0\r\n\r\n",
    "no host": b"GET /SECRET HTTP/1.1\r\n\r\n",
    "many headers": b"GET / HTTP/1.1\r\n" + HOST + b"SECRET: 1\r\n" * 300 + b"\r\n",
    "chunk": POST + b"Transfer-Encoding: chunked\r\n\r\nSECRET\r\n\r\n",
    "end of a chunk": POST + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhelloSECRET\r\n\r\n",
    # What would be understood in two ways by two servers.
    "both lengths": POST
    + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nSECRET",
    "two lengths": POST + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nSECRET",
    "signed length": POST + b"Content-Length: +5\r\n\r\nSECRET",
    "unknown coding": POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\nSECRET",
    "bare line feeds": b"GET /SECRET HTTP/1.1\nHost: x\n\n",
    "space before the colon": POST + b"Content-Length : 5\r\n\r\nSECRET",
}


async def test_what_is_not_http_is_refused_in_openais_words(
    capfd: pytest.CaptureFixture[str],
) -> None:
    async with stack() as gateway:
        for name, data in MALFORMED.items():
            answer = await answer_to(gateway, data)
            assert answer.split()[1] == b"400", name
            assert b"SECRET" not in answer, name
            error = error_of(answer)
            assert error["type"] == "invalid_request_error", name
            assert error["message"] == "the request is not valid HTTP", name
        assert not gateway.llm.starts
    said = "".join(capfd.readouterr())
    assert "SECRET" not in said
    assert "Traceback" not in said


@pytest.mark.parametrize("data", [b"GET /%s HTTP/1.1\r\n\r\n", b"GET / HTTP/1.1\r\nA: %s\r\n\r\n"])
async def test_a_head_too_long_is_told_the_limit(data: bytes) -> None:
    async with stack() as gateway:
        answer = await answer_to(gateway, data % (b"SECRET" * 3000))
    assert answer.split()[1] == b"400"
    message = error_of(answer)["message"]
    assert message == "a line of the request's head is longer than 8190 bytes"


@pytest.mark.parametrize("data", [LAST_LIVE, b"SECRET\r\n\r\n", b"GET /nowhere HTTP/1.0\r\n\r\n"])
async def test_no_answer_tells_a_version(data: bytes) -> None:
    async with stack() as gateway:
        answer = await answer_to(gateway, data)
    assert b"\r\nServer: internvl-gateway\r\n" in answer


async def test_a_head_that_does_not_come_is_408() -> None:
    """Neither do bytes help that come now and then."""
    async with stack(header_seconds=0.2) as gateway, connected(gateway) as (reader, writer):
        answer = asyncio.create_task(reader.read())
        for character in chat_request().decode().partition("\r\n\r\n")[0]:
            if answer.done():
                break
            writer.write(character.encode())
            await asyncio.sleep(0.05)
    assert (await answer).split()[1] == b"408"
    message = error_of(await answer)["message"]
    assert message == "the request's head did not arrive within 0.2 seconds"


@pytest.mark.parametrize("before", [b"", LIVE])
async def test_an_idle_connection_is_closed(before: bytes) -> None:
    async with stack(idle_seconds=0.2) as gateway:
        answer = await answer_to(gateway, before)
    assert answer.count(b"200 OK") == (1 if before else 0)


async def test_a_connection_at_work_is_not_idle() -> None:
    async with stack(llm=ScriptedLLM(stalls=True), idle_seconds=0.1) as gateway:
        chat = asyncio.create_task(gateway.chat())
        await happening(gateway.llm.stalled)
        await asyncio.sleep(4 * connections.SWEEP_SECONDS)
        gateway.llm.released.set()
        assert (await chat)[0] == 200


async def test_who_does_not_read_the_end_of_an_answer_is_cut_off() -> None:
    """The whole answer is more than sockets hold; its place in the traffic is free long since."""
    llm = ScriptedLLM(texts=["x" * 1_000_000] * 30)
    async with (
        stack(llm=llm, idle_seconds=0.2) as gateway,
        connected(gateway, chat_request()) as (_, writer),
    ):
        cast(asyncio.Transport, writer.transport).pause_reading()
        await becomes_true(lambda: bool(gateway.llm.starts))
        await becomes_true(lambda: connection_count(gateway) == 0)


async def becomes_true(condition: Callable[[], bool]) -> None:
    """Waits for what must come soon; else fails."""
    for _ in range(100):
        if condition():
            return
        await asyncio.sleep(SOON_SECONDS / 100)
    raise AssertionError


def connection_count(gateway: Gateway) -> int:
    """Returns how many descriptors of this process are the gateway's ends of connections."""
    ends = psutil.Process().net_connections("tcp")
    return sum(end.laddr.port == port_of(gateway) and bool(end.raddr) for end in ends)


async def test_a_flood_of_idle_connections_keeps_nobody_out() -> None:
    with structlog.testing.capture_logs() as logs:
        async with stack(max_connection_count=10) as gateway:
            flood = [
                await asyncio.open_connection("127.0.0.1", port_of(gateway)) for _ in range(100)
            ]
            assert (await answer_to(gateway, LAST_LIVE)).startswith(b"HTTP/1.1 200")
            assert (await gateway.chat())[0] == 200
            for _, writer in flood:
                writer.transport.abort()
    assert {line["event"] for line in logs} == {"request"}


async def test_while_all_connections_are_at_work_health_is_answered_and_others_are_told() -> None:
    async with (
        stack(llm=ScriptedLLM(stalls=True), max_connection_count=1) as gateway,
        connected(gateway, chat_request()),
    ):
        await happening(gateway.llm.stalled)
        answer = await answer_to(gateway, chat_request())
        assert answer.split()[1] == b"503"
        assert b"\r\nRetry-After: 1\r\n" in answer
        assert error_of(answer)["message"] == "2 connections are open; the limit is 1"
        answer = await answer_to(gateway, LIVE)  # its connection is closed afterwards
        assert answer.startswith(b"HTTP/1.1 200")
        gateway.llm.released.set()


async def test_what_exceeds_even_the_spare_connections_is_closed_and_logged_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connections, "SPARE_COUNT", 0)
    with structlog.testing.capture_logs() as logs:
        async with (
            stack(llm=ScriptedLLM(stalls=True), max_connection_count=1) as gateway,
            connected(gateway, chat_request()) as (reader, _),
        ):
            await happening(gateway.llm.stalled)
            for _ in range(50):
                with suppress(ConnectionResetError):  # by TLS within the handshake
                    async with connected(gateway) as (refused, _):
                        assert await asyncio.wait_for(refused.read(), SOON_SECONDS) == b""
            gateway.llm.released.set()
            assert (await reader.readline()).startswith(b"HTTP/1.1 200")
    assert [line["event"] for line in logs if line["event"] != "request"] == ["connections_refused"]
    assert len(gateway_lines(logs)) == 1


@pytest.mark.parametrize("leaving", ["close", "reset"])
@pytest.mark.parametrize(
    "pipeline", [LIVE * 60, chat_request(user="x" * 3_000_000)], ids=["many", "large"]
)
async def test_a_client_that_leaves_behind_a_full_pipeline_ends_its_generation(
    pipeline: bytes, leaving: str
) -> None:
    """Without a look at it, aiohttp reads no more of the connection, and sees no end of it."""
    async with stack(llm=ScriptedLLM(stalls=True)) as gateway:
        async with connected(gateway, chat_request()) as (_, writer):
            await happening(gateway.llm.stalled)
            writer.write(pipeline)
            await asyncio.sleep(0.1)
            if leaving == "close":
                writer.close()
                await happening(gateway.llm.cancelled)
        await happening(gateway.llm.cancelled)


async def test_short_requests_may_be_pipelined() -> None:
    async with stack() as gateway:
        answer = await answer_to(gateway, LIVE * 200 + LAST_LIVE)
    assert answer.count(b"HTTP/1.1 200 OK") == 201
