"""HTTPS: who gets in, what fails, and certificates that change. What holds of connections in plain
text is tried over TLS, too, in test_gateway_connections.py.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import ssl
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import structlog.testing
import trustme

from gateway import tls
from protos.process.reload import reload_on_sighup
from protos.process.watched_files import watching
from tests.fakes import SOON_SECONDS, Gateway, ScriptedLLM, chat_body, stack
from tests.https import CertificateFiles, client_context, https_options, issue

pytestmark = pytest.mark.timeout(60)
CHAT = "/v1/chat/completions"
LIVE = b"GET /health/live HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
# A client's first record, of which the rest never comes.
END = "-----END CERTIFICATE-----"
HALF_HELLO = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"


@pytest.fixture
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def files(authority: trustme.CA, tmp_path: Path) -> CertificateFiles:
    return issue(authority, tmp_path / "server", "127.0.0.1")


def port_of(gateway: Gateway) -> int:
    return int(gateway.url.rpartition(":")[2])


async def answer_to(gateway: Gateway, data: bytes, trust: ssl.SSLContext | None = None) -> bytes:
    """Sends bytes, and returns all that comes until the gateway closes the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port_of(gateway), ssl=trust)
    writer.write(data)
    try:
        return await asyncio.wait_for(reader.read(), SOON_SECONDS)
    finally:
        writer.transport.abort()


def events(logs: list[Any]) -> set[str]:
    return {line["event"] for line in logs}


def failures(logs: list[Any]) -> list[str]:
    """Returns the reasons of handshakes that failed; nothing else may be logged but requests."""
    assert events(logs) <= {"tls_handshake_failed", "request"}
    return [line["reason"] for line in logs if line["event"] == "tls_handshake_failed"]


@pytest.mark.parametrize("stream", [True, False])
async def test_a_chat_over_https(files: CertificateFiles, stream: bool) -> None:
    async with stack(**https_options(files)) as gateway:
        answer = await gateway.read_chat(stream=stream)
        assert b"Hello" in answer or b'"lo' in answer
        async with gateway.http.get("/openapi.json") as response:
            document = await response.json()
        async with gateway.http.get("/") as response:
            assert response.status == 200
            assert "http://" not in await response.text()
    assert not [server for server in document.get("servers", []) if "http:" in server["url"]]


async def test_a_long_answer_arrives_whole(files: CertificateFiles) -> None:
    llm = ScriptedLLM(texts=["x" * 1_000_000] * 20)
    async with stack(llm=llm, **https_options(files)) as gateway:
        assert (await gateway.read_chat()).count(b"x" * 1_000_000) == 20


async def test_a_slow_reader_of_the_end_of_an_answer_is_waited_for(files: CertificateFiles) -> None:
    """It reads for longer than a connection may be idle; what is still unsent is seen to shrink."""
    llm = ScriptedLLM(texts=["x" * 1_000_000] * 30)
    body = b'{"model": "scripted", "messages": [{"role": "user", "content": "Hi"}]}'
    head = b"POST %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
    async with stack(llm=llm, idle_seconds=0.4, **https_options(files)) as gateway:
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", port_of(gateway), ssl=gateway.tls, limit=65_536
        )
        writer.write(head % (CHAT.encode(), len(body)) + body)
        count, began = 0, asyncio.get_running_loop().time()
        while data := await reader.read(65_536):
            count += len(data)
            await asyncio.sleep(0.003)
        assert asyncio.get_running_loop().time() - began > 1
        assert count > 30_000_000
        writer.transport.abort()


async def test_the_end_of_a_connection_is_said(files: CertificateFiles) -> None:
    """A client can tell it from one that somebody else cut off."""

    def read_all(port: int, context: ssl.SSLContext) -> bytes:
        with (
            socket.create_connection(("127.0.0.1", port)) as plain,
            context.wrap_socket(
                plain, server_hostname="127.0.0.1", suppress_ragged_eofs=False
            ) as secure,
        ):
            secure.sendall(LIVE)
            return b"".join(iter(lambda: secure.recv(1000), b""))

    async with stack(**https_options(files)) as gateway:
        assert gateway.tls
        answer = await asyncio.to_thread(read_all, port_of(gateway), gateway.tls)
    assert answer.startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
async def test_plain_http_is_told_what_the_port_speaks(
    files: CertificateFiles, method: str
) -> None:
    with structlog.testing.capture_logs() as logs:
        async with stack(**https_options(files)) as gateway:
            url = gateway.url.replace("https", "http") + "/health/live"
            async with aiohttp.request(method, url) as response:
                assert response.status == 400
                assert await response.text() == "this port speaks TLS: ask for https://\n"
    assert len(failures(logs)) == 1


def old_client(files: CertificateFiles) -> ssl.SSLContext:
    """Returns how a client speaks TLS 1.1 and no other version."""
    context = client_context(files.certificate)
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    for bound in ("minimum_version", "maximum_version"):
        with pytest.warns(DeprecationWarning, match="TLSv1_1"):
            setattr(context, bound, ssl.TLSVersion.TLSv1_1)
    return context


async def test_no_version_before_1_2_is_spoken(files: CertificateFiles) -> None:
    newer = client_context(files.certificate)
    newer.maximum_version = ssl.TLSVersion.TLSv1_2
    with structlog.testing.capture_logs() as logs:
        async with stack(**https_options(files)) as gateway:
            assert (await answer_to(gateway, LIVE, newer)).startswith(b"HTTP/1.1 200")
            with pytest.raises(ssl.SSLError, match="(?i)protocol.version"):
                await answer_to(gateway, LIVE, old_client(files))
    assert failures(logs) == ["UNSUPPORTED_PROTOCOL"]


async def test_who_must_show_a_certificate(
    files: CertificateFiles, authority: trustme.CA, tmp_path: Path
) -> None:
    known = client_context(files.certificate, issue(authority, tmp_path / "known", "caller"))
    stranger = issue(trustme.CA(), tmp_path / "stranger", "caller")
    options = https_options(files, is_mutual=True)
    for own, reason in (
        (None, "PEER_DID_NOT_RETURN_A_CERTIFICATE"),
        (stranger, "CERTIFICATE_VERIFY_FAILED"),
    ):
        with structlog.testing.capture_logs() as logs:
            async with stack(**options) as gateway:
                assert (await answer_to(gateway, LIVE, known)).startswith(b"HTTP/1.1 200")
                with suppress(ConnectionError, ssl.SSLError):
                    refused = client_context(files.certificate, own)
                    assert await answer_to(gateway, LIVE, refused) == b""
        assert failures(logs) == [reason]


GARBAGE = {
    "noise": bytes(range(100)),
    "another record": b"\x17\x03\x03\x00\x05hello",
    "no hello": b"\x16\x03\x01\x00\x05hello",
    "too long": b"\x16\x03\x01\xff\xff" + b"x" * 70_000,
    "nothing": b"",
}


@pytest.mark.parametrize("sent", GARBAGE)
async def test_garbage_costs_a_line_of_the_log_at_most(
    files: CertificateFiles, sent: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with structlog.testing.capture_logs() as logs:
        async with stack(idle_seconds=0.2, **https_options(files)) as gateway:
            for _ in range(30):
                with suppress(ConnectionResetError):
                    await answer_to(gateway, GARBAGE[sent])
                if not GARBAGE[sent]:
                    break  # it takes its time
            for index in range(30):  # gone in the middle of a handshake
                _, writer = await asyncio.open_connection("127.0.0.1", port_of(gateway))
                writer.write(HALF_HELLO)
                writer.transport.abort() if index % 2 else writer.close()
            assert (await gateway.chat())[0] == 200
    assert len(failures(logs)) == (1 if GARBAGE[sent] else 0)
    assert "Traceback" not in "".join(capfd.readouterr())


async def test_garbage_after_the_handshake_ends_the_connection(
    files: CertificateFiles, capfd: pytest.CaptureFixture[str]
) -> None:
    def break_in(port: int, context: ssl.SSLContext) -> bytes:
        with socket.create_connection(("127.0.0.1", port)) as plain:
            incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
            secure = context.wrap_bio(incoming, outgoing, server_hostname="127.0.0.1")
            while True:
                try:
                    secure.do_handshake()
                    break
                except ssl.SSLWantReadError:
                    plain.sendall(outgoing.read())
                    incoming.write(plain.recv(65_536))
            plain.sendall(outgoing.read() + b"\x17\x03\x03\x00\x20" + b"x" * 32)
            with suppress(ConnectionResetError):
                while plain.recv(65_536):
                    pass
            return b"ended"

    with structlog.testing.capture_logs() as logs:
        async with stack(**https_options(files)) as gateway:
            assert gateway.tls
            ended = asyncio.to_thread(break_in, port_of(gateway), gateway.tls)
            assert await asyncio.wait_for(ended, SOON_SECONDS) == b"ended"
            assert (await gateway.chat())[0] == 200
    assert failures(logs) == []
    assert "Traceback" not in "".join(capfd.readouterr())


@pytest.mark.parametrize("said", [b"", HALF_HELLO])
async def test_a_flood_of_half_handshakes_keeps_nobody_out(
    files: CertificateFiles, said: bytes
) -> None:
    with structlog.testing.capture_logs() as logs:
        async with stack(max_connection_count=10, **https_options(files)) as gateway:
            flood = []
            for _ in range(100):
                flood.append(await asyncio.open_connection("127.0.0.1", port_of(gateway)))
                flood[-1][1].write(said)
            assert gateway.tls
            assert (await answer_to(gateway, LIVE, gateway.tls)).startswith(b"HTTP/1.1 200")
            assert (await gateway.chat())[0] == 200
            ended = [
                await asyncio.wait_for(reader.read(), SOON_SECONDS) for reader, _ in flood[:85]
            ]
            assert ended == [b""] * 85
            for _, writer in flood:
                writer.transport.abort()
    assert failures(logs) == []


async def test_a_handshake_that_does_not_end_is_ended(files: CertificateFiles) -> None:
    """Neither do bytes help that come now and then."""
    async with stack(idle_seconds=0.3, **https_options(files)) as gateway:
        reader, writer = await asyncio.open_connection("127.0.0.1", port_of(gateway))
        ended = asyncio.create_task(reader.read())
        for byte in HALF_HELLO * 20:
            if ended.done():
                break
            writer.write(bytes([byte]))
            await asyncio.sleep(0.05)
        with suppress(ConnectionResetError):
            assert await asyncio.wait_for(ended, SOON_SECONDS) == b""
        writer.transport.abort()


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has files be looked at more often."""
    monkeypatch.setattr(tls, "watching", partial(watching, poll_seconds=0.02))


def shown_certificate(port: int) -> bytes:
    """Returns the certificate that a new connection is shown, in DER form."""
    return ssl.PEM_cert_to_DER_cert(ssl.get_server_certificate(("127.0.0.1", port)))


async def shows(gateway: Gateway, files: CertificateFiles) -> None:
    """Waits until new connections are shown the certificate that a file holds; else fails."""
    wanted = ssl.PEM_cert_to_DER_cert(files.certificate.read_text().partition(END)[0] + END)
    for _ in range(250):
        if await asyncio.to_thread(shown_certificate, port_of(gateway)) == wanted:
            return
        await asyncio.sleep(0.02)
    raise AssertionError


async def becomes_true(condition: Callable[[], bool]) -> None:
    """Waits for what must come soon; else fails."""
    for _ in range(250):
        if condition():
            return
        await asyncio.sleep(0.02)
    raise AssertionError


async def chat_on_and_on(gateway: Gateway, trusted: ssl.SSLContext, answers: list[str]) -> None:
    """Asks for streams, each time by a new connection, and adds their last lines."""
    while True:
        connector = aiohttp.TCPConnector(ssl=trusted)
        async with (
            aiohttp.ClientSession(gateway.url, connector=connector) as http,
            http.post(CHAT, json=chat_body(stream=True)) as response,
        ):
            answers.append((await response.text())[-14:])


async def grows(answers: list[str], count: int) -> None:
    """Waits until there are so many more; else fails."""
    least = len(answers) + count
    await becomes_true(lambda: len(answers) >= least)


@pytest.mark.usefixtures("soon")
async def test_certificates_change_under_load_and_streams_go_on(
    authority: trustme.CA, files: CertificateFiles
) -> None:
    """Streams that have begun under the first one end as they would have under no other."""
    trusted = ssl.create_default_context(cafile=files.authorities)
    llm = ScriptedLLM(stalls=True)
    async with stack(llm=llm, **https_options(files)) as gateway:
        streams = [asyncio.create_task(gateway.read_chat(stream=True)) for _ in range(20)]
        await becomes_true(lambda: len(llm.starts) == 20)
        await asyncio.sleep(0.2)  # until all of them are in the middle
        llm.stalls = False  # those that come now
        answers: list[str] = []
        load = [asyncio.create_task(chat_on_and_on(gateway, trusted, answers)) for _ in range(4)]
        for _ in range(5):
            issue(authority, files.certificate.parent, "127.0.0.1")
            await shows(gateway, files)
            await grows(answers, 8)
        for task in load:
            assert not task.done()
            task.cancel()
        assert set(answers) == {"data: [DONE]\n\n"}
        assert not any(stream.done() for stream in streams)
        llm.released.set()
        assert all(
            answer.endswith(b"data: [DONE]\n\n") for answer in await asyncio.gather(*streams)
        )


@pytest.mark.usefixtures("soon")
async def test_files_that_do_not_fit_leave_the_old_certificate(
    authority: trustme.CA, files: CertificateFiles, tmp_path: Path
) -> None:
    next_files = issue(authority, tmp_path / "next", "127.0.0.1")
    with structlog.testing.capture_logs() as logs:
        async with stack(**https_options(files)) as gateway:
            before = await asyncio.to_thread(shown_certificate, port_of(gateway))
            next_files.certificate.replace(files.certificate)
            await becomes_true(lambda: "certificate_kept" in events(logs))
            assert await asyncio.to_thread(shown_certificate, port_of(gateway)) == before
            next_files.key.replace(files.key)
            await shows(gateway, files)
    (kept,) = [line["error"] for line in logs if line["event"] == "certificate_kept"]
    assert kept == f"the key {files.key} does not fit the certificate {files.certificate}"


@pytest.mark.usefixtures("soon")
async def test_a_secret_of_kubernetes_is_seen_to_change(
    authority: trustme.CA, tmp_path: Path
) -> None:
    """Its files are links through a link of the folder, which alone is set anew."""
    issue(authority, tmp_path / "..1", "127.0.0.1")
    (tmp_path / "..data").symlink_to("..1")
    for name in ("tls.crt", "tls.key", "ca.crt"):
        (tmp_path / name).symlink_to(f"..data/{name}")
    files = CertificateFiles(tmp_path / "tls.crt", tmp_path / "tls.key", tmp_path / "ca.crt")
    async with stack(**https_options(files)) as gateway:
        await shows(gateway, files)
        issue(authority, tmp_path / "..2", "127.0.0.1")
        (tmp_path / "..new").symlink_to("..2")
        (tmp_path / "..new").replace(tmp_path / "..data")
        await shows(gateway, files)


async def test_sighup_reads_the_files(
    authority: trustme.CA, files: CertificateFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tls, "watching", partial(watching, poll_seconds=1000))
    async with stack(**https_options(files)) as gateway:
        reload_on_sighup()
        issue(authority, files.certificate.parent, "127.0.0.1")
        os.kill(os.getpid(), signal.SIGHUP)
        await shows(gateway, files)


@pytest.mark.usefixtures("soon")
async def test_other_clients_are_known_when_their_authority_changes(
    files: CertificateFiles, tmp_path: Path
) -> None:
    others = trustme.CA()
    other = client_context(files.certificate, issue(others, tmp_path / "other", "caller"))
    options = https_options(files, is_mutual=True)
    with structlog.testing.capture_logs() as logs:
        async with stack(**options) as gateway:
            with suppress(ConnectionError, ssl.SSLError):
                assert await answer_to(gateway, LIVE, other) == b""
            others.cert_pem.write_to_path(str(files.authorities))
            await becomes_true(lambda: "certificate_renewed" in events(logs))
            assert (await answer_to(gateway, LIVE, other)).startswith(b"HTTP/1.1 200")
