"""TLS between the gateway and a service: who is refused, and certificates that change."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from structlog.testing import capture_logs

from gateway.services.channel import LLM_SERVICE, ServiceTLS, ask, check_health, open_channel
from gateway.services.renewed_channel import RenewedChannel
from gateway.tasks import owning
from protos.errors import AccessDeniedError, ServiceError, UnavailableError
from protos.process.credentials import client_credentials
from protos.process.rarely import Rarely
from protos.process.server import Service, running_server
from protos.process.tls import TLSFiles
from protos.status import from_rpc_error
from tests.certificates import Authority, replace_file, serial_of, served_serial, write_files

WHO, COUNT = f"/{LLM_SERVICE}/Who", f"/{LLM_SERVICE}/Count"
NAME = "services.internal"
GATEWAY = "gateway.internal"
SOON_SECONDS = 10.0


class Answers:
    """Says which certificate a caller has shown, and counts."""

    async def who(self, request: bytes, context: Any) -> bytes:
        (certificate,) = context.auth_context().get("x509_pem_cert", (b"",))
        return bytes(certificate)

    async def count(self, request: bytes, context: Any) -> AsyncIterator[bytes]:
        for number in range(int(request)):
            yield str(number).encode()
            await asyncio.sleep(0.1)


def service() -> Service:
    answers = Answers()
    handlers = {
        "Who": grpc.unary_unary_rpc_method_handler(answers.who, bytes, bytes),
        "Count": grpc.unary_stream_rpc_method_handler(answers.count, bytes, bytes),
    }
    handler = grpc.method_handlers_generic_handler(LLM_SERVICE, handlers)

    def register(server: grpc.aio.Server) -> None:
        server.add_generic_rpc_handlers((handler,))

    return Service(LLM_SERVICE, register, lambda: True)


@asynccontextmanager
async def serving(tls: TLSFiles | None, *names: str, **options: Any) -> AsyncIterator[int]:
    async with running_server(
        service(),
        "127.0.0.1",
        0,
        0,
        tls=tls,
        client_names=frozenset(names) if names else None,
        **options,
    ) as port:
        yield port


async def who(channel: grpc.aio.Channel) -> bytes:
    deadline = asyncio.get_running_loop().time() + 2
    return await ask("LLM", channel.unary_unary(WHO, bytes, bytes), b"", deadline)


async def failure(port: int, tls: ServiceTLS | None) -> tuple[ServiceError, str]:
    """Returns why the gateway cannot call, as it says so, and as its log does."""
    async with open_channel(f"127.0.0.1:{port}", LLM_SERVICE, tls) as channel:
        with capture_logs() as logs, pytest.raises(ServiceError) as raised:
            await who(channel)
    lines = [log for log in logs if log["event"] in ("unavailable", "denied")]
    return raised.value, f"{lines[0].get('hint', '')} | {lines[0]['details']}" if lines else ""


def count(logs: Sequence[Mapping[str, Any]], event: str) -> int:
    return sum(log["event"] == event for log in logs)


async def until(holds: Callable[[], bool]) -> None:
    deadline = asyncio.get_running_loop().time() + SOON_SECONDS
    while not holds():
        assert asyncio.get_running_loop().time() < deadline
        await asyncio.sleep(0.02)


@pytest.fixture
def authority() -> Authority:
    return Authority()


@pytest.fixture(autouse=True)
def _no_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.services.channel._rarely", Rarely(0.0))


@pytest.fixture
def server_files(authority: Authority, tmp_path: Path) -> TLSFiles:
    return write_files(tmp_path / "server", authority.issue(NAME))


@pytest.fixture
def mutual_files(authority: Authority, tmp_path: Path) -> TLSFiles:
    return write_files(tmp_path / "server", authority.issue(NAME), authority.pem)


@pytest.fixture
def trust(authority: Authority, tmp_path: Path) -> ServiceTLS:
    """A gateway's that has no certificate of its own."""
    return ServiceTLS(write_files(tmp_path / "gateway", None, authority.pem), NAME)


def with_certificate(
    trust: ServiceTLS, folder: Path, pair: tuple[bytes, bytes], name: str = NAME
) -> ServiceTLS:
    return ServiceTLS(write_files(folder, pair, trust.files.read().authorities), name)


async def test_calls_are_encrypted_and_an_address_of_numbers_needs_a_name(
    authority: Authority, server_files: TLSFiles, trust: ServiceTLS
) -> None:
    async with serving(server_files) as port:
        for address in (f"127.0.0.1:{port}", f"ipv4:127.0.0.1:{port}", f"dns:///localhost:{port}"):
            async with open_channel(address, LLM_SERVICE, trust) as channel:
                assert await who(channel) == b""
                await check_health(channel, LLM_SERVICE, "LLM", 2)
        error, log = await failure(port, ServiceTLS(trust.files))
    assert isinstance(error, UnavailableError)
    assert "the service's certificate is not for the name" in log


async def test_a_certificate_for_the_address_needs_no_name(
    authority: Authority, tmp_path: Path, trust: ServiceTLS
) -> None:
    files = write_files(tmp_path / "server", authority.issue("127.0.0.1"))
    async with (
        serving(files) as port,
        open_channel(f"127.0.0.1:{port}", LLM_SERVICE, ServiceTLS(trust.files)) as channel,
    ):
        assert await who(channel) == b""


@asynccontextmanager
async def serving_every_version(files: TLSFiles) -> AsyncIterator[int]:
    """Serves TLS, and nothing within it, in all versions that OpenSSL still has."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with pytest.warns(DeprecationWarning, match="TLSv1"):
        context.minimum_version = ssl.TLSVersion.TLSv1
    context.set_ciphers("ALL:@SECLEVEL=0")
    assert files.certificate
    context.load_cert_chain(files.certificate, files.key)
    server = await asyncio.start_server(
        lambda _, writer: writer.close(), "127.0.0.1", 0, ssl=context
    )
    async with server:
        yield server.sockets[0].getsockname()[1]


async def test_versions_of_tls_before_1_2_are_refused(server_files: TLSFiles) -> None:
    assert server_files.certificate
    serial = serial_of(server_files.certificate.read_bytes())
    old_versions = (ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1)
    async with serving(server_files) as port, serving_every_version(server_files) as other_port:
        for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
            assert await asyncio.to_thread(served_serial, port, version) == serial
        for version in old_versions:
            with pytest.warns(DeprecationWarning, match="TLSv1"):
                assert await asyncio.to_thread(served_serial, other_port, version) == serial
            with pytest.warns(DeprecationWarning, match="TLSv1"), pytest.raises(OSError):  # noqa: PT011
                await asyncio.to_thread(served_serial, port, version)


@asynccontextmanager
async def serving_expired(authority: Authority) -> AsyncIterator[int]:
    """Serves with a certificate that our own server would not start with."""
    certificate, key = authority.issue(NAME, days=-1)
    server = grpc.aio.server()
    credentials = grpc.ssl_server_credentials([(key, certificate)])
    port = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()
    try:
        yield port
    finally:
        await server.stop(0)


async def test_the_log_says_what_is_wrong_and_the_client_does_not_learn_it(
    authority: Authority, server_files: TLSFiles, trust: ServiceTLS, tmp_path: Path
) -> None:
    other = ServiceTLS(write_files(tmp_path / "other", None, Authority().pem), NAME)
    async with (
        serving(server_files) as port,
        serving(None) as plain_port,
        serving_expired(authority) as expired_port,
    ):
        cases = {
            "the service wants TLS": await failure(port, None),
            "does not speak TLS": await failure(plain_port, trust),
            "signed by none of the authorities": await failure(port, other),
            "the service's certificate has expired": await failure(expired_port, trust),
        }
    for expected, (error, log) in cases.items():
        assert isinstance(error, UnavailableError)
        assert error.message == "the LLM service is unavailable"
        assert expected in log


async def test_a_client_without_a_certificate_of_the_authority_is_refused(
    authority: Authority, mutual_files: TLSFiles, trust: ServiceTLS, tmp_path: Path
) -> None:
    stranger = with_certificate(trust, tmp_path / "stranger", Authority().issue(GATEWAY))
    async with serving(mutual_files, GATEWAY) as port:
        for tls in (trust, stranger):
            error, log = await failure(port, tls)
            assert isinstance(error, UnavailableError)
            assert "--service-certificate-file" in log


@pytest.mark.parametrize("form", ["dns", "uri"])
async def test_only_the_clients_that_are_named_may_call(
    authority: Authority, mutual_files: TLSFiles, trust: ServiceTLS, tmp_path: Path, form: str
) -> None:
    name = {"dns": GATEWAY, "uri": "spiffe://internal/gateway"}[form]
    pair = authority.issue(name) if form == "dns" else authority.issue_uri(name)
    tls = with_certificate(trust, tmp_path / "gateway", pair)
    async with (
        serving(mutual_files, name, "another.internal") as port,
        open_channel(f"127.0.0.1:{port}", LLM_SERVICE, tls) as channel,
    ):
        assert serial_of(await who(channel)) == serial_of(pair[0])
    async with serving(mutual_files, "another.internal") as port:
        error, log = await failure(port, tls)
    assert type(error) is ServiceError  # not AccessDeniedError: it is the gateway that is denied
    assert name not in error.message
    assert name in log


async def test_the_service_logs_whom_it_refuses(
    authority: Authority, mutual_files: TLSFiles, trust: ServiceTLS, tmp_path: Path
) -> None:
    tls = with_certificate(trust, tmp_path / "other", authority.issue("other.internal", "10.0.0.9"))
    async with serving(mutual_files, GATEWAY, "10.0.0.9") as port:
        credentials = client_credentials(tls.files)
        options = [("grpc.default_authority", NAME)]
        target = f"127.0.0.1:{port}"
        async with grpc.aio.secure_channel(target, credentials, options=options) as channel:
            with capture_logs() as logs:
                for _ in range(3):
                    with pytest.raises(grpc.aio.AioRpcError) as raised:
                        await channel.unary_unary(WHO, bytes, bytes)(b"")
                    assert isinstance(from_rpc_error(raised.value), AccessDeniedError)
                with pytest.raises(grpc.aio.AioRpcError):
                    _ = [each async for each in channel.unary_stream(COUNT, bytes, bytes)(b"1")]
            (line,) = [log for log in logs if log["event"] == "caller_denied"]
            assert line["names"] == ["other.internal"]
            health = await health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(service=LLM_SERVICE)
            )
            assert health.status == health_pb2.HealthCheckResponse.SERVING


async def test_a_near_end_is_warned_of_each_day_that_a_process_lives(
    authority: Authority, tmp_path: Path, trust: ServiceTLS, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("protos.process.tls.WARNING_SECONDS", 0.02)
    files = write_files(tmp_path / "server", authority.issue(NAME, days=13))
    tls = with_certificate(trust, tmp_path / "gateway", authority.issue(GATEWAY, days=12))
    with capture_logs() as logs:
        async with serving(files) as port, open_channel(f"127.0.0.1:{port}", LLM_SERVICE, tls):
            await until(lambda: count(logs, "certificate_expires") > 10)
    paths = [log["path"] for log in logs if log["event"] == "certificate_expires"]
    assert paths.count(str(files.certificate)) > 2
    assert paths.count(str(tls.files.certificate)) > 2


async def test_half_written_files_change_nothing(
    authority: Authority, mutual_files: TLSFiles, trust: ServiceTLS, tmp_path: Path
) -> None:
    first, second = authority.issue(NAME), authority.issue(NAME)
    mine, renewed = authority.issue(GATEWAY), authority.issue(GATEWAY)
    files = write_files(tmp_path / "server", first)
    own = with_certificate(trust, tmp_path / "gateway", mine)
    tls = ServiceTLS(own.files, NAME, poll_seconds=0.02)
    assert files.certificate
    assert own.files.certificate
    async with (
        serving(mutual_files, GATEWAY) as port,
        open_channel(f"127.0.0.1:{port}", LLM_SERVICE, tls) as channel,
    ):
        assert serial_of(await who(channel)) == serial_of(mine[0])
        with capture_logs() as logs:
            files.certificate.write_bytes(second[0][:100])
            own.files.certificate.write_bytes(renewed[0])  # the key is not there yet
            for _ in range(3):
                assert await asyncio.to_thread(served_serial, port) == serial_of(first[0])
            await until(lambda: count(logs, "certificate_kept") == 2)
            assert serial_of(await who(channel)) == serial_of(mine[0])
        errors = {log["error"] for log in logs if log["event"] == "certificate_kept"}
        assert errors == {
            f"{files.certificate} holds no certificates in PEM form",
            f"the key {own.files.key} does not fit the certificate {own.files.certificate}",
        }
        write_files(tmp_path / "server", second)
        write_files(tmp_path / "gateway", renewed)
        assert await asyncio.to_thread(served_serial, port) == serial_of(second[0])
        deadline = asyncio.get_running_loop().time() + SOON_SECONDS
        while serial_of(await who(channel)) != serial_of(renewed[0]):
            assert asyncio.get_running_loop().time() < deadline
            await asyncio.sleep(0.02)


async def test_a_new_certificate_that_no_service_takes_does_not_replace_the_old_one(
    authority: Authority, mutual_files: TLSFiles, trust: ServiceTLS, tmp_path: Path
) -> None:
    mine = authority.issue(GATEWAY)
    own = with_certificate(trust, tmp_path / "gateway", mine)
    tls = ServiceTLS(own.files, NAME, poll_seconds=0.02)
    async with (
        serving(mutual_files, GATEWAY) as port,
        open_channel(f"127.0.0.1:{port}", LLM_SERVICE, tls) as channel,
    ):
        with capture_logs() as logs:
            write_files(tmp_path / "gateway", Authority().issue(GATEWAY))
            await until(lambda: count(logs, "certificate_kept") > 0)
            assert serial_of(await who(channel)) == serial_of(mine[0])
        assert any("--service-certificate-file" in log.get("hint", "") for log in logs)


class Load:
    """Streams and unary calls over one channel, all the time.

    Attributes:
        callers: serial numbers of the certificates that the service has seen of us.
        survivor_count: streams that have ended well on a channel that another one has replaced.
    """

    def __init__(self, channel: RenewedChannel) -> None:
        self._channel = channel
        self._count = channel.unary_stream(COUNT, bytes, bytes)
        self._who = channel.unary_unary(WHO, bytes, bytes)
        self.callers: set[int] = set()
        self.survivor_count = 0

    async def stream(self, length: int) -> None:
        """Reads one stream after another; each takes a tenth of a second for a number."""
        while True:
            first = self._channel.latest
            numbers = [int(each) async for each in self._count(str(length).encode(), timeout=60)]
            assert numbers == list(range(length))
            self.survivor_count += self._channel.latest is not first

    async def call(self) -> None:
        """Makes one unary call after another, of which none is put again."""
        while True:
            self.callers.add(serial_of(await self._who(b"", timeout=10)))
            await asyncio.sleep(0.01)


class Rotation:
    """Changes one file after another, as who puts an authority in another one's place.

    Attributes:
        shown: serial numbers of the gateway's certificates, the first of which it began with.
    """

    def __init__(self, folder: Path) -> None:
        self._old, self._new = Authority(), Authority()
        self._server, self._gateway = folder / "server", folder / "gateway"
        first = self._old.issue(GATEWAY)
        self.shown = [serial_of(first[0])]
        self.files = write_files(self._server, self._old.issue(NAME), self._old.pem)
        self.own = write_files(self._gateway, first, self._old.pem)

    async def run(self, port: int, channel: RenewedChannel, load: Load) -> None:
        """Makes all changes, each at least half a second after the one before has been taken."""
        for signer in (self._new, self._old):
            await self._trust(self._old.pem + self._new.pem, channel)
            for _ in range(2):
                await self._certify_server(signer, port)
                await self._certify_gateway(signer, load)
            await self._trust(signer.pem, channel)

    async def _trust(self, authorities: bytes, channel: RenewedChannel) -> None:
        former = channel.latest
        for folder in (self._server, self._gateway):
            replace_file(folder / "authorities.pem", authorities)
        await until(lambda: channel.latest is not former)
        await asyncio.sleep(0.5)

    async def _certify_server(self, signer: Authority, port: int) -> None:
        certificate, key = signer.issue(NAME)
        write_files(self._server, (certificate, key))
        assert await asyncio.to_thread(served_serial, port) == serial_of(certificate)
        await asyncio.sleep(0.5)

    async def _certify_gateway(self, signer: Authority, load: Load) -> None:
        certificate, key = signer.issue(GATEWAY)
        write_files(self._gateway, (certificate, key))
        self.shown.append(serial_of(certificate))
        await until(lambda: self.shown[-1] in load.callers)
        await asyncio.sleep(0.5)


@pytest.mark.slow
async def test_certificates_change_under_load_without_an_error(tmp_path: Path) -> None:
    rotation = Rotation(tmp_path)
    tls = ServiceTLS(rotation.own, NAME, poll_seconds=0.05)
    async with (
        serving(rotation.files, GATEWAY, connection_age_seconds=1) as port,
        open_channel(f"127.0.0.1:{port}", LLM_SERVICE, tls) as channel,
    ):
        assert isinstance(channel, RenewedChannel)
        load = Load(channel)
        streams = [load.stream(5 + number) for number in range(30)]
        tasks = [asyncio.create_task(each) for each in (*streams, load.call(), load.call())]
        rotating = asyncio.create_task(rotation.run(port, channel, load))
        done, _ = await asyncio.wait([*tasks, rotating], return_when=asyncio.FIRST_COMPLETED)
        async with owning(*tasks, rotating):
            for task in done:
                await task
    assert done == {rotating}
    assert load.callers == {*rotation.shown}
    assert len(rotation.shown) == 5
    assert load.survivor_count > 0
