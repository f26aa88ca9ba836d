"""A gateway that asks for keys: who gets in, what the others are told, and keys that change."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import ssl
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from itertools import count
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest
import structlog.testing
import trustme
import yaml

from gateway.access.new_keys import add_to_file, entry_of, new_key
from gateway.app import OPERATIONS
from gateway.metrics import Metrics
from gateway.paths import OPEN_PATHS
from protos.internvl.v1 import llm_pb2
from protos.process.reload import reload_on_sighup
from tests.fakes import (
    MODEL,
    SOON_SECONDS,
    Gateway,
    LLMContext,
    ScriptedLLM,
    ScriptedVision,
    chat_body,
    happening,
    stack,
)
from tests.https import https_options, issue
from tests.integration.test_gateway_connections import answer_to, connected, error_of, port_of
from tests.integration.test_gateway_metrics import about, read, request_line
from tests.integration.test_gateway_process import running_process
from tests.wrong_keys import RULES, wrong_keys

CHAT = "/v1/chat/completions"
PATIENCE_SECONDS = 30.0
KEY, OTHER = new_key(), new_key()
BEARER = {"Authorization": f"Bearer {KEY}"}
MISSING = "an API key is needed: send it as Authorization: Bearer KEY, or as x-api-key"
UNKNOWN = "the API key is not one of this server's"
CHALLENGE = 'Bearer realm="internvl-gateway"'


def open_ai_error(message: str) -> dict[str, Any]:
    members = {"type": "invalid_request_error", "param": None, "code": "invalid_api_key"}
    return {"error": {"message": message, **members}}


async def status_of(gateway: Gateway, headers: dict[str, str], path: str = "/v1/models") -> int:
    async with gateway.http.get(path, headers=headers) as response:
        await response.read()
        return response.status


async def eventually(condition: Callable[[], bool]) -> None:
    """Waits for what must come soon; else fails."""

    async def come() -> None:
        while not condition():  # noqa: ASYNC110 - the log tells nobody
            await asyncio.sleep(0.005)

    await asyncio.wait_for(come(), PATIENCE_SECONDS)


def key_file(folder: Path, **keys: str) -> Path:
    """Writes a file of keys by their callers' names, all at once, as it should be written."""
    lines = "".join(entry_of(name, key) for name, key in keys.items())
    (new := folder / "new").write_text(f"keys:\n{lines}" if keys else "keys: []\n")
    new.chmod(0o600)
    return new.rename(folder / "keys.yaml")


async def test_only_a_key_gets_an_answer() -> None:
    async with stack(api_key=KEY) as gateway:
        for headers, message in (
            ({}, MISSING),
            ({"Authorization": f"Bearer {OTHER}"}, UNKNOWN),
            ({"x-api-key": OTHER}, UNKNOWN),
        ):
            async with gateway.http.post(CHAT, json=chat_body(), headers=headers) as response:
                assert response.status == 401
                assert response.headers["WWW-Authenticate"] == CHALLENGE
                assert await response.json() == open_ai_error(message)
        assert gateway.llm.starts == []
        for headers in (BEARER, {"x-api-key": KEY}):
            async with gateway.http.post(CHAT, json=chat_body(), headers=headers) as response:
                assert response.status == 200
        assert len(gateway.llm.starts) == 2


async def test_anthropics_paths_refuse_in_its_words() -> None:
    async with (
        stack(api_key=KEY) as gateway,
        gateway.http.post("/v1/messages", json={}) as response,
    ):
        assert (response.status, response.headers["WWW-Authenticate"]) == (401, CHALLENGE)
        assert await response.json() == {
            "type": "error",
            "error": {"type": "authentication_error", "message": MISSING},
            "request_id": response.headers["request-id"],
        }


def paths() -> list[tuple[str, str]]:
    """Returns each method and path that is served, and some that are not."""
    served = [
        (method.upper(), path.replace("{id}", MODEL)) for method, path in sorted(OPERATIONS)
    ] + [("GET", "/"), ("GET", "/docs"), ("GET", "/page/main.js"), ("GET", "/openapi.json")]
    heads = [("HEAD", path) for method, path in served if method == "GET"]
    missed = [
        ("GET", "/nowhere"),
        ("GET", "/metrics"),
        ("POST", "/health"),
        ("PATCH", "/"),
        ("PROPFIND", CHAT),
    ]
    return [*served, *heads, *missed, ("GET", "/v1/responses/x"), ("OPTIONS", CHAT)]


async def test_all_but_health_and_the_page_ask_for_a_key() -> None:
    is_open = {"/page/main.js", *OPEN_PATHS}
    async with stack(api_key=KEY) as gateway:
        for method, path in paths():
            async with gateway.http.request(method, path) as response:
                expected = path in is_open and method in ("GET", "HEAD")
                assert (response.status == 200) == expected, (method, path)
                assert (response.status == 401) != expected, (method, path)
            async with gateway.http.request(method, path, headers=BEARER) as response:
                assert response.status != 401, (method, path)


@pytest.mark.parametrize("upgrade", ["websocket", "h2c"])
async def test_an_upgrade_gets_no_further(upgrade: str) -> None:
    head = f"GET {CHAT} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: {upgrade}\r\n"
    body = b"Content-Length: 9\r\n\r\n"  # which does not come: the connection ends
    async with stack(api_key=KEY) as gateway:
        answer = await answer_to(gateway, head.encode() + body)
    assert answer.startswith(b"HTTP/1.1 401")


async def test_browsers_ask_beforehand_without_a_key() -> None:
    origin = "https://chat.example.com"
    asked = {
        "Origin": origin,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,x-api-key",
    }
    async with stack(api_key=KEY, allowed_origins=(origin,)) as gateway:
        async with gateway.http.options(CHAT, headers=asked) as response:
            assert response.status == 204
            assert response.headers["Access-Control-Allow-Headers"] == "authorization,x-api-key"
        async with gateway.http.options(CHAT, headers=asked | {"Origin": "https://x"}) as response:
            assert response.status == 401
        async with gateway.http.post(CHAT, json={}, headers={"Origin": origin}) as response:
            assert response.status == 401
            assert response.headers["Access-Control-Allow-Origin"] == origin


async def test_no_body_is_invited_or_read_of_who_has_no_key() -> None:
    head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 9\r\n\r\n"
    async with stack(api_key=KEY) as gateway:
        answer = await answer_to(gateway, head.encode())
        assert answer.startswith(b"HTTP/1.1 401")
        assert b"\r\nConnection: close\r\n" in answer
        assert error_of(answer)["code"] == "invalid_api_key"


async def test_what_is_sent_on_without_a_key_stays_unread() -> None:
    """A client that sends 64 MB gets rid of what fits between the two sockets, and no more."""
    length = 64 * 1024 * 1024
    head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n".encode()
    async with stack(api_key=KEY) as gateway, connected(gateway, head) as (reader, writer):
        writer.write(bytes(length))
        before = writer.transport.get_write_buffer_size()
        answer = await asyncio.wait_for(reader.readuntil(b"}}"), SOON_SECONDS)
        await asyncio.sleep(0.3)
        left = writer.transport.get_write_buffer_size()
    assert answer.startswith(b"HTTP/1.1 401")
    assert left > length / 2
    assert left <= before


@pytest.mark.parametrize("is_encrypted", [False, True])
async def test_who_still_sends_without_a_key_can_read_why_not(
    is_encrypted: bool, tmp_path: Path
) -> None:
    """The answer ends before the reset that unread bytes lead to."""
    head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999\r\n\r\n".encode()

    def talk(port: int, context: ssl.SSLContext | None) -> bytes:
        with socket.create_connection(("127.0.0.1", port)) as plain, ExitStack() as exits:
            connection = plain
            if context:
                secure = context.wrap_socket(
                    plain, server_hostname="127.0.0.1", suppress_ragged_eofs=False
                )
                connection = exits.enter_context(secure)
            connection.sendall(head + bytes(1_000_000))
            time.sleep(0.3)
            return b"".join(iter(lambda: connection.recv(65_536), b""))

    files = issue(trustme.CA(), tmp_path / "server", "127.0.0.1")
    options = https_options(files) if is_encrypted else {}
    async with stack(api_key=KEY, **options) as gateway:
        answer = await asyncio.to_thread(talk, port_of(gateway), gateway.tls)
    assert error_of(answer)["message"] == MISSING


async def test_a_refusal_without_a_body_leaves_the_connection() -> None:
    get = b"GET /v1/models HTTP/1.1\r\nHost: x\r\n"
    async with stack(api_key=KEY) as gateway, connected(gateway) as (reader, writer):
        for key, status in ((OTHER, b"401"), (KEY, b"200"), (OTHER, b"401")):
            writer.write(get + f"x-api-key: {key}\r\n\r\n".encode())
            answer = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), SOON_SECONDS)
            assert answer.split()[1] == status
            await reader.readexactly(int(answer.lower().partition(b"length: ")[2].split()[0]))


@pytest.mark.parametrize("wrong_count", [1000, pytest.param(10_000, marks=pytest.mark.slow)])
async def test_no_wrong_key_gets_in(wrong_count: int) -> None:
    statuses: Counter[tuple[str, int]] = Counter()
    async with stack(api_key=KEY) as gateway:
        wrongs = [
            (rule, key)
            for rule, key in wrong_keys([KEY], wrong_count)
            if key.strip(" \t\r\n") != KEY
        ]  # what is left of these by HTTP's own rules is the key
        share = -(-len(wrongs) // 8)
        parts = [wrongs[start : start + share] for start in range(0, len(wrongs), share)]
        for tried in await asyncio.gather(*(_statuses(gateway, part) for part in parts)):
            statuses += tried
        assert await status_of(gateway, BEARER) == 200
    assert statuses.total() == len(wrongs) > 0.98 * wrong_count
    assert {status for _, status in statuses} == {400, 401}
    assert all(statuses[rule, 401] > wrong_count / 40 for rule in RULES)


async def _statuses(
    gateway: Gateway, wrongs: Sequence[tuple[str, str]]
) -> Counter[tuple[str, int]]:
    """Returns how often each rule's keys were answered by each status."""
    statuses: Counter[tuple[str, int]] = Counter()
    for index, (rule, wrong) in zip(count(), wrongs, strict=False):
        header = "x-api-key: " if index % 2 else "Authorization: Bearer "
        value = wrong.encode("utf-8", "surrogateescape")
        head = b"GET /v1/models HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
        answer = await answer_to(gateway, head + header.encode() + value + b"\r\n\r\n")
        assert KEY.encode() not in answer
        statuses[rule, int(answer.split()[1])] += 1
    return statuses


async def test_a_key_that_has_expired_says_so_to_who_has_it(tmp_path: Path) -> None:
    then = datetime.now(timezone.utc) - timedelta(days=1)
    entry = yaml.safe_load(entry_of("alice", KEY))[0] | {"expires": then}
    (path := tmp_path / "keys.yaml").write_text(yaml.safe_dump({"keys": [entry]}))
    metrics = Metrics()
    async with stack(api_keys_file=path, metrics=metrics) as gateway:
        with structlog.testing.capture_logs() as events:
            async with gateway.http.get("/v1/models", headers=BEARER) as response:
                body = await response.json()
    assert (response.status, body) == (401, open_ai_error("the API key has expired"))
    assert request_line(events)["caller"] == "alice"
    counted = read(metrics)
    assert counted["authentication_failures_total/expired"] == 1
    assert counted["caller_requests_total/alice/401"] == 1


async def test_callers_are_counted_by_the_names_of_their_keys(tmp_path: Path) -> None:
    path, metrics = key_file(tmp_path, alice=KEY, bob=OTHER), Metrics()
    async with stack(api_keys_file=path, metrics=metrics) as gateway:
        before = read(metrics)
        with structlog.testing.capture_logs() as events:
            body = chat_body(**about(b"cat", b"dog"))
            async with gateway.http.post(CHAT, json=body, headers=BEARER) as response:
                assert response.status == 200
        line = request_line(events)
        assert await status_of(gateway, {"x-api-key": OTHER}, "/nowhere") == 404
        assert await status_of(gateway, {}) == 401
        assert await status_of(gateway, {"x-api-key": "x"}) == 401
        assert await status_of(gateway, {"Authorization": "x"}) == 401
        assert await status_of(gateway, {}, "/health") == 200
        after = read(metrics)
    assert line["caller"] == "alice"
    failures = ("missing", "malformed", "unknown", "expired")
    names = [f"authentication_failures_total/{fault}" for fault in failures]
    assert [before[name] for name in names] == [0, 0, 0, 0]
    assert [after[name] for name in names] == [1, 1, 1, 0]
    assert {
        name: value
        for name, value in after.items()
        if name.startswith("caller_") and "created" not in name
    } == {
        "caller_requests_total/alice/200": 1,
        "caller_requests_total/bob/404": 1,
        "caller_images_total/alice": 2,
        "caller_tokens_total/alice/prompt": 542,
        "caller_tokens_total/alice/cached": 16,
        "caller_tokens_total/alice/output": 3,
    }


async def test_where_no_key_is_asked_for_nobody_is_counted_by_name() -> None:
    metrics = Metrics()
    async with stack(metrics=metrics) as gateway:
        with structlog.testing.capture_logs() as events:
            async with gateway.http.post(CHAT, json=chat_body(), headers=BEARER) as response:
                assert response.status == 200
    assert request_line(events)["caller"] == "anybody"
    assert not [name for name in read(metrics) if name.startswith("caller_")]


async def test_the_document_says_that_a_key_is_needed() -> None:
    async with stack(api_key=KEY) as gateway:
        _, described = await gateway.get("/openapi.json")
    assert described["components"]["securitySchemes"].keys() == {"bearer", "x-api-key"}
    for path, methods in described["paths"].items():
        for operation in methods.values():
            is_open = path in OPEN_PATHS
            assert ("security" in operation) != is_open
            assert ("401" in operation["responses"]) != is_open
            assert is_open or {"403", "429"} <= operation["responses"].keys()


@dataclass
class RecordingLLM(ScriptedLLM):
    """Keeps the metadata of all calls."""

    metadata: list[str] = field(default_factory=list)

    def _note(self, start: llm_pb2.GenerateStart, context: LLMContext) -> None:
        self.metadata.append(str(context.invocation_metadata()))
        super()._note(start, context)


async def test_no_key_goes_on_to_a_service() -> None:
    llm = RecordingLLM()
    async with stack(llm=llm, api_key=KEY) as gateway:
        for headers in (BEARER, {"x-api-key": KEY}):
            body = chat_body(**about(b"cat"))
            async with gateway.http.post(CHAT, json=body, headers=headers) as response:
                assert response.status == 200
    assert len(llm.metadata) == 2
    sent = [*llm.metadata, *map(str, llm.starts), *map(str, gateway.vision.requests)]
    assert all(KEY not in each for each in sent)


@asynccontextmanager
async def rereading() -> AsyncIterator[None]:
    """Makes SIGHUP reread, as in the gateway's process, within the block."""
    reload_on_sighup()
    try:
        yield
    finally:
        asyncio.get_running_loop().remove_signal_handler(signal.SIGHUP)


async def reread() -> list[Any]:
    """Has the file of keys read anew, waits until it is, and returns what was logged."""
    with structlog.testing.capture_logs() as events:
        os.kill(os.getpid(), signal.SIGHUP)
        await eventually(lambda: any(each["event"].startswith("api_keys_re") for each in events))
    return events


async def test_a_change_of_the_file_holds_soon_by_itself(tmp_path: Path) -> None:
    path = key_file(tmp_path, alice=KEY)
    async with stack(api_keys_file=path) as gateway:
        assert await status_of(gateway, {"x-api-key": OTHER}) == 401
        with structlog.testing.capture_logs() as events:
            await asyncio.to_thread(add_to_file, path, "bob", OTHER)
            await eventually(lambda: any("reloaded" in event["event"] for event in events))
            assert await status_of(gateway, {"x-api-key": OTHER}) == 200
        (line,) = [event for event in events if event["event"] == "api_keys_reloaded"]
        assert line == {
            "event": "api_keys_reloaded",
            "log_level": "info",
            "added": ["bob"],
            "removed": [],
            "changed": [],
            "key_count": 2,
        }


async def test_a_file_with_a_fault_leaves_the_keys_that_there_are(tmp_path: Path) -> None:
    path, metrics = key_file(tmp_path, alice=KEY), Metrics()
    async with rereading(), stack(api_keys_file=path, metrics=metrics) as gateway:
        for write in (
            lambda: path.write_text(f"keys:\n- name: {OTHER}\n  sha256: {OTHER}\n  nme: x\n"),
            lambda: path.write_text(""),
            path.unlink,
            path.mkdir,
        ):
            write()
            events = await reread()
            (refused,) = [event for event in events if event["event"] == "api_keys_refused"]
            assert str(path) in refused["error"]
            assert OTHER not in str(events)
            assert await status_of(gateway, BEARER) == 200
            assert await status_of(gateway, {"x-api-key": OTHER}) == 401
            assert read(metrics)["api_keys_file_refused"] == 1
        path.rmdir()
        key_file(tmp_path, bob=OTHER)
        await reread()
        assert read(metrics)["api_keys_file_refused"] == 0
        assert await status_of(gateway, BEARER) == 401
        assert await status_of(gateway, {"x-api-key": OTHER}) == 200


async def test_keys_that_stay_serve_through_all_changes(tmp_path: Path) -> None:
    """Under load, while others come and go, and the file is broken in between."""
    path = key_file(tmp_path, alice=KEY)
    statuses: Counter[int] = Counter()
    answered = asyncio.Event()
    is_over = asyncio.Event()

    async def ask(gateway: Gateway, index: int) -> None:
        while not is_over.is_set():
            body = chat_body(stream=index % 2 == 0)
            async with gateway.http.post(CHAT, json=body, headers=BEARER) as response:
                await response.read()
                statuses[response.status] += 1
                answered.set()

    async with rereading(), stack(api_keys_file=path, max_request_count=1000) as gateway:
        tasks = [asyncio.create_task(ask(gateway, index)) for index in range(4)]
        for turn in range(20):
            others = {f"other-{turn}-{index}": new_key() for index in range(turn)}
            key_file(tmp_path, alice=KEY, **others, last=(last := new_key()))
            await reread()
            assert await status_of(gateway, {"x-api-key": last}) == 200
            path.write_text("keys: [")
            await reread()
            for _ in range(8):
                answered.clear()
                await answered.wait()
        is_over.set()
        await asyncio.gather(*tasks)
    assert statuses.keys() == {200}


async def test_a_stream_goes_on_though_its_key_is_taken_away(tmp_path: Path) -> None:
    path, llm = key_file(tmp_path, alice=KEY), ScriptedLLM(stalls=True)
    async with rereading(), stack(llm=llm, api_keys_file=path) as gateway:
        body = chat_body(stream=True)
        async with gateway.http.post(CHAT, json=body, headers=BEARER) as response:
            await happening(llm.stalled)
            key_file(tmp_path)
            await reread()
            assert await status_of(gateway, BEARER) == 401
            llm.released.set()
            assert (await response.text()).endswith("data: [DONE]\n\n")


async def test_the_option_and_the_file_both_hold(tmp_path: Path) -> None:
    path = key_file(tmp_path, alice=KEY)
    async with stack(api_keys_file=path, api_key=OTHER) as gateway:
        assert await status_of(gateway, BEARER) == 200
        with structlog.testing.capture_logs() as events:
            assert await status_of(gateway, {"x-api-key": OTHER}) == 200
    assert request_line(events)["caller"] == "default"


@pytest.mark.parametrize(("mode", "warned"), [(0o600, False), (0o640, False), (0o644, True)])
async def test_a_file_that_all_can_read_is_warned_of(
    tmp_path: Path, mode: int, warned: bool
) -> None:
    path = key_file(tmp_path, alice=KEY)
    path.chmod(mode)
    with structlog.testing.capture_logs() as events:
        async with stack(api_keys_file=path):
            pass
    found = [event for event in events if event["event"] == "api_keys_file_readable_by_all"]
    assert bool(found) == warned


async def test_the_openai_client_with_a_key_and_without_one() -> None:
    async with stack(api_key=KEY) as gateway:
        url = f"{gateway.url}/v1"
        question: Any = [{"role": "user", "content": "Hi"}]
        async with openai.AsyncOpenAI(base_url=url, api_key=KEY, max_retries=0) as client:
            answer = await client.chat.completions.create(model=MODEL, messages=question)
            assert answer.choices[0].message.content == "Hello"
        async with openai.AsyncOpenAI(base_url=url, api_key=OTHER, max_retries=0) as client:
            with pytest.raises(openai.AuthenticationError) as caught:
                await client.chat.completions.create(model=MODEL, messages=question)
    assert caught.value.code == "invalid_api_key"
    assert UNKNOWN in str(caught.value)


@pytest.mark.parametrize("option", ["api_key", "auth_token"])
async def test_the_anthropic_client_with_a_key_and_without_one(option: str) -> None:
    async with stack(api_key=KEY) as gateway:
        more: Any = {
            "model": MODEL,
            "max_tokens": 9,
            "messages": [{"role": "user", "content": "Hi"}],
        }
        for key in (KEY, OTHER):
            given: Any = {option: key, "base_url": gateway.url, "max_retries": 0}
            async with anthropic.AsyncAnthropic(**given) as client:
                if key == KEY:
                    assert (await client.messages.create(**more)).content[0].type == "text"
                else:
                    with pytest.raises(anthropic.AuthenticationError, match="not one of this"):
                        await client.messages.create(**more)


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
async def test_curl_with_a_key_and_without_one(tmp_path: Path) -> None:
    (body := tmp_path / "body").write_bytes(json.dumps(chat_body()).encode() + b" " * 3_000_000)
    async with stack(api_key=KEY) as gateway:
        for key, status in ((KEY, b"200"), (OTHER, b"401")):
            process = await asyncio.create_subprocess_exec(
                *("curl", "-s", "-S", "-w", "%{http_code}", "--data-binary", f"@{body}"),
                *("-H", f"Authorization: Bearer {key}", gateway.url + CHAT),
                stdout=asyncio.subprocess.PIPE,
            )
            output, _ = await asyncio.wait_for(process.communicate(), 30)
            assert output.endswith(status)


async def test_a_process_rereads_on_sighup_and_logs_no_key(tmp_path: Path) -> None:
    path = key_file(tmp_path, alice=KEY)
    options = ("--api-keys-file", str(path), "--log-level", "debug")
    async with running_process(ScriptedVision(), ScriptedLLM(), *options) as (process, http):
        async with http.get("/health/live") as response:
            port = response.url.port
        for header in (
            f"x-api-key: {OTHER}",
            f"Authorization: Bearer {OTHER}",
            f"Authorization: Basic {OTHER}",
            f"Authorization: Bearer {OTHER}\0",
            f"Authorization {OTHER}",
            f"Authorization: Bearer {KEY}",
        ):
            head = f"GET /v1/models?key={OTHER} HTTP/1.1\r\nHost: x\r\n{header}\r\n\r\n"
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(head.encode())
            answer = await asyncio.wait_for(reader.readuntil(b"}"), SOON_SECONDS)
            assert OTHER.encode() not in answer
            writer.close()
        key_file(tmp_path, bob=OTHER)
        process.send_signal(signal.SIGHUP)
        assert process.stderr is not None
        lines = [await process.stderr.readline()]
        while lines[-1] and b'"api_keys_reloaded"' not in lines[-1]:
            lines.append(await process.stderr.readline())
        async with http.get("/v1/models", headers={"x-api-key": OTHER}) as response:
            assert response.status == 200
        process.terminate()
        log = b"".join([*lines, await process.stderr.read()]).decode()
    assert log.count('"status": 401') == 3
    assert log.count('"malformed_request"') == 2
    assert '"caller": "bob"' in log
    for key in (KEY, OTHER):
        assert key not in log
        assert key[12:40] not in log
