"""How a gRPC service of this contract runs: health, reflection, errors, drain."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable
from collections.abc import Set as AbstractSet
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial

import grpc
import structlog
from grpc_health.v1 import health_pb2_grpc
from grpc_health.v1.health import SERVICE_NAME as HEALTH_SERVICE_NAME
from grpc_reflection.v1alpha import reflection

from protos.process.calls import CallInterceptor
from protos.process.credentials import server_credentials
from protos.process.exposure import warn_of_plain_text
from protos.process.garbage_collector import freeze_started
from protos.process.health import HealthServicer
from protos.process.metrics import serving_metrics
from protos.process.reload import reload_on_sighup
from protos.process.service_metrics import ServiceMetrics
from protos.process.settings import GrpcSettings
from protos.process.supervisor import supervisor
from protos.process.tls import TLSFileError, TLSFiles, warning_daily
from protos.process.tracing import exporting
from protos.transport import DEFAULT_MAX_MESSAGE_BYTE_COUNT, KEEPALIVE_OPTIONS

logger = structlog.get_logger()

DEFAULT_MAX_CALL_COUNT = 512
HEALTH_POLL_SECONDS = 0.5
# The last is for services under mpirun, which after a SIGTERM of its own kills its processes within
# two seconds, but passes a SIGUSR1 on and waits.
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)

# Without these two a client that pings during a long prefill is cut off with "too_many_pings".
SERVER_PING_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.http2.min_ping_interval_without_data_ms", 1_000),
    ("grpc.http2.max_ping_strikes", 0),
)
# Calls on a connection that takes no more of them have a deadline of their own: at most a day.
CONNECTION_GRACE_SECONDS = 86_400


@dataclass(frozen=True)
class Service:
    """One gRPC service, ready to be registered.

    Attributes:
        name: full name in the protos, e.g. "internvl.v1.VisionService".
        register: adds the servicer to a server.
        is_healthy: whether the engine behind it still works; polled.
        max_message_byte_count: largest request message.
        max_call_count: most calls of it at a time; more are RESOURCE_EXHAUSTED.
        is_ready: whether it can take calls now; health is NOT_SERVING while it cannot.
        reflection: whether the server tells what its services look like.
        metrics: what Prometheus is told of it.
    """

    name: str
    register: Callable[[grpc.aio.Server], None]
    is_healthy: Callable[[], bool]
    max_message_byte_count: int = DEFAULT_MAX_MESSAGE_BYTE_COUNT
    max_call_count: int = DEFAULT_MAX_CALL_COUNT
    is_ready: Callable[[], bool] = lambda: True
    reflection: bool = True
    metrics: ServiceMetrics = field(default_factory=partial(ServiceMetrics, "internvl"))


@asynccontextmanager
async def running_server(
    service: Service,
    host: str,
    port: int,
    drain_seconds: float,
    *,
    notice_seconds: float = 0.0,
    connection_age_seconds: float | None = None,
    tls: TLSFiles | None = None,
    client_names: AbstractSet[str] | None = None,
) -> AsyncIterator[int]:
    """Runs a gRPC server with health: SERVING from the start, as the engine is warm.

    Args:
        service: what is served.
        host: address to listen on.
        port: port to listen on; 0 takes a free one.
        drain_seconds: how long calls in flight get to end.
        notice_seconds: how long, before that, new ones are taken though the health says no.
        connection_age_seconds: how long a connection takes new calls; None: for ever.
        tls: what connections are encrypted with; None: they are not.
        client_names: of whom calls are taken, as of CallInterceptor.

    Yields:
        The port that was bound. On leaving, the service is NOT_SERVING first.

    Raises:
        OSError: the address cannot be bound, or a file of TLS not be used.
    """
    interceptor = CallInterceptor(
        service.max_call_count, service.metrics.count_refusal, client_names
    )
    server = _make_server(service, interceptor, connection_age_seconds)
    service.register(server)
    health = HealthServicer(("", service.name), service.is_ready)
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    if service.reflection:
        names = (service.name, HEALTH_SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, server)
    bound_port = _bind(server, f"{host}:{port}", tls)
    await server.start()
    try:
        async with warning_daily(tls) if tls else nullcontext():
            yield bound_port
    finally:
        health.drain()
        if health.is_watched and service.is_healthy():
            await asyncio.sleep(notice_seconds)
        await _drain(server, interceptor.idle, health, drain_seconds)


def _make_server(
    service: Service, interceptor: CallInterceptor, connection_age_seconds: float | None
) -> grpc.aio.Server:
    return grpc.aio.server(
        interceptors=[interceptor],
        options=[
            *KEEPALIVE_OPTIONS,
            *SERVER_PING_OPTIONS,
            *_age_options(connection_age_seconds),
            ("grpc.max_receive_message_length", service.max_message_byte_count),
            ("grpc.so_reuseport", 0),
        ],
    )


def _bind(server: grpc.aio.Server, address: str, tls: TLSFiles | None) -> int:
    try:
        if tls is None:
            return server.add_insecure_port(address)
        return server.add_secure_port(address, server_credentials(tls))
    except TLSFileError as error:
        raise OSError(str(error)) from error
    except RuntimeError as error:
        raise OSError(f"cannot listen on {address}: {_why_not(address)}") from error


def _why_not(address: str) -> str:
    """Returns the reason for which nothing can listen there: gRPC keeps it to itself."""
    host, _, port = address.rpartition(":")
    try:
        family, *_, place = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family) as listener:
            listener.bind(place)
    except OSError as error:
        return str(error.strerror)
    return "gRPC has logged why"


def _age_options(seconds: float | None) -> tuple[tuple[str, int], ...]:
    if seconds is None:
        return ()
    return (
        ("grpc.max_connection_age_ms", round(seconds * 1000)),
        ("grpc.max_connection_age_grace_ms", CONNECTION_GRACE_SECONDS * 1000),
    )


async def _drain(
    server: grpc.aio.Server, idle: asyncio.Event, health: HealthServicer, seconds: float
) -> None:
    """Stops the server; watchers of its health are let go once our own calls have ended.

    `stop` is called once: gRPC crashes when one call of it runs into its time limit just after
    another has freed the server.
    """

    async def end_watches() -> None:
        await idle.wait()
        health.end_watches()

    ending = asyncio.create_task(end_watches())
    try:
        await server.stop(seconds)
    finally:
        ending.cancel()


def exit_on_stop_signals() -> None:
    """Makes each of STOP_SIGNALS end the process at once, until `serve` drains on them instead.

    For the time of loading: a process that is its container's first one ignores SIGTERM by default,
    and the others show a traceback at Ctrl-C. The exit status is the shell's, 143 for SIGTERM.
    SIGHUP, which would end it too, has nothing to reread yet.
    """
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    for signum in STOP_SIGNALS:
        signal.signal(signum, lambda number, _: os._exit(128 + number))


async def serve(service: Service, settings: GrpcSettings) -> bool:
    """Serves until one of STOP_SIGNALS, or until the engine dies; metrics beside it.

    Returns:
        True after a signal, False when the engine died: the process should then exit non-zero, so
        that its supervisor starts a new one.

    Raises:
        OSError: an address cannot be bound, or a file of TLS not be used.
    """
    freeze_started()
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signum in STOP_SIGNALS:
        loop.add_signal_handler(signum, stop.set)
    reload_on_sighup()
    warn_of_plain_text(settings)
    program = settings.model_config.get("cli_prog_name") or service.name
    with (
        serving_metrics(service.metrics.registry, settings.host, settings.metrics_port),
        exporting(program, settings.otlp_endpoint),
    ):
        async with running_server(
            service,
            settings.host,
            settings.port,
            settings.drain_seconds,
            notice_seconds=settings.drain_notice_seconds,
            connection_age_seconds=settings.connection_age_seconds,
            tls=settings.tls,
            client_names=settings.client_names,
        ) as port:
            logger.info("serving", service=service.name, host=settings.host, port=port)
            supervisor().serves(settings.host, port)
            async with supervisor().watching(service.is_healthy):
                healthy = await _wait_until(stop, service.is_healthy)
            logger.info("draining", service=service.name, engine_healthy=healthy)
            supervisor().drains(settings.drain_notice_seconds + settings.drain_seconds)
    return healthy


async def _wait_until(stop: asyncio.Event, is_healthy: Callable[[], bool]) -> bool:
    while is_healthy():
        try:
            await asyncio.wait_for(stop.wait(), HEALTH_POLL_SECONDS)
        except asyncio.TimeoutError:
            continue
        return True
    return False
