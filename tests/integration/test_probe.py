"""`internvl-probe` asks services and gateways, in plain text and by TLS."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest
import trustme
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from tests.fakes import stack
from tests.https import CertificateFiles, https_options, issue

HEALTH = health_pb2.HealthCheckResponse
NAME = "internvl.v1.LLMService"


async def probe(*words: str) -> tuple[int | None, str]:
    """Returns the exit status of the program and all that it says."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "protos.process.probe", *words),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await process.communicate()
    return process.returncode, said.decode()


@pytest.fixture
def files(tmp_path: Path) -> CertificateFiles:
    return issue(trustme.CA(), tmp_path / "tls", "llm.example")


@asynccontextmanager
async def service(
    files: CertificateFiles | None = None, *, is_mutual: bool = False
) -> AsyncIterator[tuple[str, health.aio.HealthServicer]]:
    """Serves health over gRPC; yields its address, and what it says."""
    server = grpc.aio.server()
    servicer = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0") if files is None else 0
    if files:
        pair = (files.key.read_bytes(), files.certificate.read_bytes())
        roots = files.authorities.read_bytes() if is_mutual else None
        credentials = grpc.ssl_server_credentials([pair], roots, is_mutual)
        port = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()
    await servicer.set("", HEALTH.SERVING)
    try:
        yield f"127.0.0.1:{port}", servicer
    finally:
        await server.stop(None)


async def test_a_service_in_plain_text() -> None:
    async with service() as (address, servicer):
        assert await probe(address) == (0, f"{address}: serving\n")
        status, said = await probe(address, "--service", NAME)
        assert status == 1
        assert said.startswith(f"{address}: no answer: ")
        await servicer.set(NAME, HEALTH.NOT_SERVING)
        assert await probe(address, "--service", NAME) == (1, f"{address}: draining\n")
        assert (await probe(address, "--service", NAME, "--alive"))[0] == 0
    for words in ([], ["--alive"]):
        status, said = await probe(address, *words)
        assert status == 1
        assert said.startswith(f"{address}: no answer: ")
        assert said.count("\n") == 1


async def test_a_service_over_tls(files: CertificateFiles) -> None:
    own = ["--server-certificate-file", str(files.certificate)]
    shown = ["--certificate-file", str(files.certificate), "--key-file", str(files.key)]
    async with service(files) as (address, _):
        assert (await probe(address, *own))[0] == 0
        assert (await probe(address))[0] == 1
        status, said = await probe(address, "--ca-file", str(files.authorities))
        assert status == 1  # the certificate is not for 127.0.0.1
        assert "Hostname Verification" in said
    async with service(files, is_mutual=True) as (address, _):
        assert (await probe(address, *own, *shown))[0] == 0
        assert (await probe(address, *own))[0] == 1


async def test_another_certificate_is_not_believed(files: CertificateFiles, tmp_path: Path) -> None:
    other = issue(trustme.CA(), tmp_path / "other", "llm.example")
    async with service(files) as (address, _):
        assert (await probe(address, "--server-certificate-file", str(other.certificate)))[0] == 1
    async with stack(**https_options(files)) as gateway:
        url = f"{gateway.url}/health/live"
        assert (await probe(url, "--server-certificate-file", str(other.certificate)))[0] == 1
        assert (await probe(url, "--server-certificate-file", str(files.certificate)))[0] == 0


async def test_a_gateway(files: CertificateFiles) -> None:
    async with stack(closed=["llm"]) as gateway:
        url = f"{gateway.url}/health/ready"
        assert await probe(url) == (1, f"{url}: status 503\n")
        assert (await probe(url, "--alive"))[0] == 0
        assert (await probe(f"{gateway.url}/health/live"))[0] == 0
    assert (await probe(url, "--alive"))[0] == 1
    async with stack(**https_options(files, is_mutual=True)) as gateway:
        url = f"{gateway.url}/health/ready"
        own = ["--server-certificate-file", str(files.certificate)]
        shown = ["--certificate-file", str(files.certificate), "--key-file", str(files.key)]
        assert (await probe(url, *own, *shown))[0] == 0
        assert (await probe(url, *own))[0] == 1
        assert (await probe(url))[0] == 1


async def test_wrong_words_are_told(tmp_path: Path) -> None:
    status, said = await probe("127.0.0.1:9", "--ca-file", str(tmp_path / "nowhere"))
    assert status == 1
    assert "nowhere" in said
    assert "Traceback" not in said
    assert (await probe())[0] == 2


@pytest.mark.parametrize(
    "words",
    [
        ["--key-file", "a.key"],
        ["--certificate-file", "a.crt"],
        ["--ca-file", "ca.crt", "--server-certificate-file", "a.crt"],
    ],
)
async def test_nobody_is_asked_in_plain_text_for_half_of_the_options_of_tls(
    words: list[str],
) -> None:
    async with service() as (address, _):
        status, said = await probe(address, *words)
    assert status == 1
    assert "each other" in said
