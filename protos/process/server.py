"""How a gRPC service of this contract runs: health, reflection, errors, drain."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn

import grpc
import structlog
from google.protobuf.message import DecodeError
from grpc_health.v1 import health_pb2_grpc
from grpc_health.v1.health import SERVICE_NAME as HEALTH_SERVICE_NAME
from grpc_reflection.v1alpha import reflection
from grpc_status import rpc_status

from protos.errors import InvalidArgumentError, ServiceError
from protos.process.health import HealthServicer
from protos.process.logs import bind_request_id, request_id_of
from protos.process.settings import ServingSettings
from protos.status import to_status
from protos.transport import DEFAULT_MAX_MESSAGE_BYTE_COUNT, KEEPALIVE_OPTIONS

logger = structlog.get_logger()

Context = grpc.aio.ServicerContext[Any, Any]
Behavior = Callable[[Any, Context], Any]
DEFAULT_MAX_CALL_COUNT = 512
HEALTH_POLL_SECONDS = 0.5
# The last is for services under mpirun, which after a SIGTERM of its own kills its processes within
# two seconds, but passes a SIGUSR1 on and waits.
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)

# Without these two a client that pings during a long prefill is cut off with "too_many_pings".
SERVER_PING_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.http2.max_ping_strikes", 0),
)


@dataclass(frozen=True)
class Service:
    """One gRPC service, ready to be registered.

    Attributes:
        name: full name in the protos, e.g. "internvl.v1.VisionService".
        register: adds the servicer to a server.
        is_healthy: whether the engine behind it still works; polled.
        max_message_byte_count: largest request message.
        max_call_count: most calls at a time, health checks included; more are RESOURCE_EXHAUSTED.
        is_ready: whether it can take calls now; health is NOT_SERVING while it cannot.
    """

    name: str
    register: Callable[[grpc.aio.Server], None]
    is_healthy: Callable[[], bool]
    max_message_byte_count: int = DEFAULT_MAX_MESSAGE_BYTE_COUNT
    max_call_count: int = DEFAULT_MAX_CALL_COUNT
    is_ready: Callable[[], bool] = lambda: True


@asynccontextmanager
async def running_server(
    service: Service, host: str, port: int, drain_seconds: float
) -> AsyncIterator[int]:
    """Runs a gRPC server with health (SERVING from the start: the engine is warm) and reflection.

    Yields:
        The port that was bound. On leaving, the service is NOT_SERVING first, then calls in flight
        get `drain_seconds` to end.

    Raises:
        OSError: the address cannot be bound.
    """
    interceptor = ServiceInterceptor()
    server = _make_server(service, interceptor)
    service.register(server)
    health = HealthServicer(("", service.name), service.is_ready)
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    names = (service.name, HEALTH_SERVICE_NAME, reflection.SERVICE_NAME)
    reflection.enable_server_reflection(names, server)
    try:
        bound_port = server.add_insecure_port(f"{host}:{port}")
    except RuntimeError as error:
        raise OSError(f"cannot listen on {host}:{port}") from error
    await server.start()
    try:
        yield bound_port
    finally:
        health.drain()
        await _drain(server, interceptor.idle, health, drain_seconds)


def _make_server(service: Service, interceptor: ServiceInterceptor) -> grpc.aio.Server:
    return grpc.aio.server(
        interceptors=[interceptor],
        maximum_concurrent_rpcs=service.max_call_count,
        options=[
            *KEEPALIVE_OPTIONS,
            *SERVER_PING_OPTIONS,
            ("grpc.max_receive_message_length", service.max_message_byte_count),
            ("grpc.so_reuseport", 0),
        ],
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
    """
    for signum in STOP_SIGNALS:
        signal.signal(signum, lambda number, _: os._exit(128 + number))


async def serve(service: Service, settings: ServingSettings) -> bool:
    """Serves until one of STOP_SIGNALS, or until the engine dies.

    Returns:
        True after a signal, False when the engine died: the process should then exit non-zero, so
        that its supervisor starts a new one.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signum in STOP_SIGNALS:
        loop.add_signal_handler(signum, stop.set)
    async with running_server(
        service, settings.host, settings.port, settings.drain_seconds
    ) as port:
        logger.info("serving", service=service.name, host=settings.host, port=port)
        healthy = await _wait_until(stop, service.is_healthy)
        logger.info("draining", service=service.name, engine_healthy=healthy)
    return healthy


async def _wait_until(stop: asyncio.Event, is_healthy: Callable[[], bool]) -> bool:
    while is_healthy():
        try:
            await asyncio.wait_for(stop.wait(), HEALTH_POLL_SECONDS)
        except asyncio.TimeoutError:
            continue
        return True
    return False


# By (request is a stream, response is a stream): the kinds of call that our services have.
_METHOD_HANDLERS = {
    (False, False): grpc.unary_unary_rpc_method_handler,
    (False, True): grpc.unary_stream_rpc_method_handler,
    (True, True): grpc.stream_stream_rpc_method_handler,
}


class ServiceInterceptor(grpc.aio.ServerInterceptor):
    """Binds the request id, and turns exceptions into gRPC status with google.rpc details.

    The one place that catches everything: a ServiceError crosses the wire as it is; anything else
    is a bug, logged with its traceback and answered by INTERNAL without it.

    Attributes:
        idle: set while no call of our services runs.
    """

    def __init__(self) -> None:
        self.idle = asyncio.Event()
        self.idle.set()
        self._call_count = 0

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Wraps the kinds of handler that our services have; leaves gRPC's own services alone."""
        handler = await continuation(handler_call_details)
        if handler is None or handler_call_details.method.startswith("/grpc."):
            return handler
        request_id = request_id_of(handler_call_details.invocation_metadata)
        if streaming := handler.stream_stream or handler.unary_stream:
            call: Behavior = partial(self._streaming, streaming, request_id)
        else:
            call = partial(self._unary, handler.unary_unary, request_id)
        return _METHOD_HANDLERS[handler.request_streaming, handler.response_streaming](
            call, handler.request_deserializer, handler.response_serializer
        )

    async def _unary(
        self, behavior: Behavior, request_id: str, request: Any, context: Context
    ) -> Any:
        with self._counted(request_id):
            try:
                return await behavior(request, context)
            except grpc.aio.AbortError:
                raise
            except Exception as error:  # noqa: BLE001 - the one place for it: see the class
                await _abort(context, error)

    async def _streaming(
        self, behavior: Behavior, request_id: str, request: Any, context: Context
    ) -> AsyncGenerator[Any, None]:
        with self._counted(request_id):
            try:
                async with aclosing(behavior(request, context)) as responses:
                    async for response in responses:
                        yield response
            except grpc.aio.AbortError:
                raise
            except Exception as error:  # noqa: BLE001 - the one place for it: see the class
                await _abort(context, error)

    @contextmanager
    def _counted(self, request_id: str) -> Iterator[None]:
        bind_request_id(request_id)
        self._call_count += 1
        self.idle.clear()
        try:
            yield
        finally:
            self._call_count -= 1
            if not self._call_count:
                self.idle.set()


async def _abort(context: Context, error: Exception) -> NoReturn:
    if isinstance(error, DecodeError):
        error = InvalidArgumentError("the message is not valid protobuf")
    if not isinstance(error, ServiceError):
        logger.error("bug", exc_info=error)
        error = ServiceError("internal error; the service's log has it under this request id")
    status = rpc_status.to_status(to_status(error))
    await context.abort(status.code, status.details, status.trailing_metadata)
