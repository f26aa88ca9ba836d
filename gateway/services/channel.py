"""The way to a service: its channel, its health, and its failed calls as our errors."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import grpc
import structlog
from grpc_health.v1 import health_pb2

from gateway.pools import Pool
from gateway.services.renewed_channel import keep_connected, open_renewed_channel
from gateway.services.routing import OFFER_COUNT, ROUTING_KEY, allow_hash_keys, service_config
from gateway.tasks import owning
from protos.errors import (
    AccessDeniedError,
    DeadlineError,
    EngineDeadError,
    OverloadedError,
    ServiceError,
    UnavailableError,
)
from protos.process.credentials import client_credentials
from protos.process.logs import request_metadata
from protos.process.rarely import Rarely
from protos.process.settings import KIB
from protos.process.tls import TLSFiles, warning_daily
from protos.process.watched_files import POLL_SECONDS
from protos.status import from_rpc_error
from protos.transport import KEEPALIVE_OPTIONS

logger = structlog.get_logger()

Answer = TypeVar("Answer")

# What the caller calls a field of the contract, e.g. "top_p" for "sampling.top_p".
FieldNamer = Callable[[str], str]

VISION_SERVICE = "internvl.v1.VisionService"
LLM_SERVICE = "internvl.v1.LLMService"
SPOKEN_NAMES = {VISION_SERVICE: "vision", LLM_SERVICE: "LLM"}
# grpc's own words in the place of the service's status: of a write into a call that ends at this
# very moment, and of a wire on which bytes were lost or changed.
BROKEN_WRITE = "Internal error from Core"
BROKEN_WIRE = "Stream removed"
CHANNEL_OPTIONS = [
    # What a call has sent is not kept: it is we that send it again.
    ("grpc.per_rpc_retry_buffer_size", 64 * KIB),
    # gRPC would let the receive window grow with the bandwidth, to 10 MB an image and more.
    ("grpc.http2.bdp_probe", 0),
    # Proxies of the environment stand between us and the world, not between us and the services.
    ("grpc.enable_http_proxy", 0),
    # How soon a service that has restarted is found again.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # How long a connection may take to come about: a busy service needs its time for that, and for
    # one that hangs it adds to that of the pings.
    ("grpc.min_reconnect_backoff_ms", 2500),
    # A name is looked up again when a connection ends, which services see to.
    ("grpc.dns_min_time_between_resolutions_ms", 2000),
]
# A question is put so often, each time to whom chance has it, until there is an answer: a replica
# that hangs says nothing, and of two replicas half of the keys lead to it.
ASK_COUNT = 8
# How long an answer is waited for before the question is put once more.
ASK_PATIENCE_SECONDS = 0.3
# How long it is where the answer takes work: more than a long text's or a bad guide's.
WORK_PATIENCE_SECONDS = 5.0
# How long the answer of one certain replica is waited for.
ONE_PATIENCE_SECONDS = 1.0
# How long a service may take to say, over a connection of its own, that it serves.
HEALTH_SECONDS = 5.0
# What says that a replica has no answer now, though another one may.
NO_ANSWER = (UnavailableError, DeadlineError, OverloadedError)
# After a line in the log that says that a service is unavailable, or denies us something.
QUIET_SECONDS = 1.0
# Of a service that is gone each request asks often.
_rarely = Rarely(QUIET_SECONDS)
# What grpc says of a handshake that failed, and what that means; the first that is found counts.
WRONG_NAME = (
    "the service's certificate is not for the name that stands in its address, or in"
    " --service-server-name"
)
HANDSHAKE_HINTS = {
    "Hostname Verification": WRONG_NAME,
    "not in peer certificate": WRONG_NAME,  # before 1.85
    "certificate has expired": "the service's certificate has expired",
    "CERTIFICATE_VERIFY_FAILED": "the service's certificate is signed by none of the authorities in"
    " --service-ca-file",
    "WRONG_VERSION_NUMBER": "the service does not speak TLS: it has no --tls-certificate-file",
    "Socket closed": "if it never worked: the service wants TLS, --service-ca-file, or a"
    " certificate of ours, --service-certificate-file, that its authorities have signed",
}


@dataclass(frozen=True)
class ServiceTLS:
    """How connections to the services are encrypted.

    Attributes:
        files: whose services are trusted, and the gateway's own certificate where they want one.
        server_name: that a service's certificate must have; empty for the one in its address.
        poll_seconds: how often the files are looked at.
    """

    files: TLSFiles
    server_name: str = ""
    poll_seconds: float = POLL_SECONDS


@asynccontextmanager
async def open_channel(
    address: str, service: str, tls: ServiceTLS | None = None
) -> AsyncIterator[grpc.aio.Channel]:
    """Yields a channel to a service, whose calls find their replicas as `routing` says.

    Args:
        address: the service's, as gRPC writes it; a name may have many.
        service: its name in the protos.
        tls: how it is encrypted; None: not at all.

    Raises:
        TLSFileError: a file of TLS cannot be used.
    """
    allow_hash_keys()
    options = [
        *KEEPALIVE_OPTIONS,
        *CHANNEL_OPTIONS,
        ("grpc.service_config", service_config(service)),
    ]
    if tls is None:
        plain = grpc.aio.insecure_channel(address, options=options)
        async with plain, owning(asyncio.create_task(keep_connected(plain))):
            yield plain
        return
    is_served = partial(
        check_health, name=service, service=SPOKEN_NAMES[service], seconds=HEALTH_SECONDS
    )
    pool = Pool("certificates", 1)
    connect = partial(_connect, address, options, tls, pool)
    with closing(pool):
        async with (
            open_renewed_channel(connect, is_served, tls.files.paths, tls.poll_seconds) as renewed,
            warning_daily(tls.files),
        ):
            yield renewed


async def _connect(
    address: str, options: Sequence[tuple[str, Any]], tls: ServiceTLS, pool: Pool
) -> grpc.aio.Channel:
    credentials = await pool.run(client_credentials, tls.files)
    name = [("grpc.default_authority", tls.server_name)] if tls.server_name else []
    return grpc.aio.secure_channel(address, credentials, options=[*options, *name])


def soon(deadline: float, seconds: float) -> float:
    """Returns an earlier deadline: in so many seconds, if that comes first."""
    return min(deadline, asyncio.get_running_loop().time() + seconds)


def seconds_until(deadline: float) -> float:
    """Returns the seconds that are left until a moment of the event loop's time, at least 0."""
    return max(0.0, deadline - asyncio.get_running_loop().time())


@contextmanager
def errors_of(service: str, name_field: FieldNamer = str) -> Iterator[None]:
    """Raises a failed call as the ServiceError that it stands for.

    Args:
        service: the service as people call it.
        name_field: turns the contract's path in the error's `field` into the caller's.
    """
    try:
        yield
    except grpc.aio.AioRpcError as error:
        failure = _service_error(service, error)
        failure.field = name_field(failure.field)
        raise failure from error


def _service_error(service: str, error: grpc.aio.AioRpcError) -> ServiceError:
    failure = from_rpc_error(error)
    if isinstance(failure, EngineDeadError):
        return EngineDeadError(f"the engine of the {service} service failed", retry_after=1)
    if isinstance(failure, UnavailableError) or _broke_off(error):
        # grpc's own text holds addresses: for the log, not for clients.
        details = error.details() or ""
        if _rarely.lets(("unavailable", service)):
            logger.warning("unavailable", service=service, details=details, **_hint(details))
        return UnavailableError(f"the {service} service is unavailable", retry_after=1)
    if isinstance(failure, AccessDeniedError):
        # It denies the gateway something, not the gateway's client.
        if _rarely.lets(("denied", service)):
            logger.error("denied", service=service, details=failure.message)
        return ServiceError(f"the {service} service refused what the gateway passed on to it")
    if isinstance(failure, DeadlineError):
        return DeadlineError(f"the {service} service did not end within the request's time")
    return failure


def _hint(details: str) -> dict[str, str]:
    """Returns what an operator may do about a failed handshake; nothing where it was none."""
    hints = [hint for sign, hint in HANDSHAKE_HINTS.items() if sign in details]
    return {"hint": hints[0]} if hints else {}


def _broke_off(error: grpc.aio.AioRpcError) -> bool:
    """Returns whether the call itself has failed, not the service behind it."""
    details = error.details() or ""
    is_wire = error.code() is grpc.StatusCode.UNKNOWN and details.startswith(BROKEN_WIRE)
    return is_wire or details == BROKEN_WRITE or error.code() is grpc.StatusCode.CANCELLED


async def ask(
    service: str,
    call: Callable[..., Awaitable[Answer]],
    question: Any,
    deadline: float,
    key: str = "",
) -> Answer:
    """Returns a replica's answer to a unary call.

    Args:
        service: the service as people call it.
        call: the method.
        question: its message.
        deadline: when it must be over, in the event loop's time; one certain replica has a second.
        key: leads to the replica; without it the first that answers will do.

    Raises:
        ServiceError: it has not answered; of NO_ANSWER where another replica may, or, without a
            key, where none has.
    """
    put = partial(_put, service, call, question, str)
    if key:
        return await put(soon(deadline, ONE_PATIENCE_SECONDS), key)
    anybody = [partial(put, deadline, secrets.token_hex(4)) for _ in range(ASK_COUNT)]
    return await _first_answer(anybody, ASK_PATIENCE_SECONDS)


async def have_done(
    service: str,
    call: Callable[..., Awaitable[Answer]],
    question: Any,
    name_field: FieldNamer,
    deadline: float,
    key: str = "",
) -> Answer:
    """Returns what a replica answers to a unary call that it has to work for.

    Args:
        service: the service as people call it.
        call: the method.
        question: its message.
        name_field: what the caller calls a field of the message.
        deadline: when it must be over, in the event loop's time.
        key: leads to the replica that is asked first.

    Raises:
        ServiceError: it was refused, or, of NO_ANSWER, nobody has answered.
    """
    keys = [key or secrets.token_hex(4), *(secrets.token_hex(4) for _ in range(1, OFFER_COUNT))]
    asks = [partial(_put, service, call, question, name_field, deadline, each) for each in keys]
    return await _first_answer(asks, WORK_PATIENCE_SECONDS)


async def _put(
    service: str,
    call: Callable[..., Awaitable[Answer]],
    question: Any,
    name_field: FieldNamer,
    deadline: float,
    key: str,
) -> Answer:
    metadata = ((ROUTING_KEY, key), *request_metadata())
    with errors_of(service, name_field):
        return await call(question, timeout=seconds_until(deadline), metadata=metadata)


async def _first_answer(
    asks: Sequence[Callable[[], Coroutine[Any, Any, Answer]]], patience_seconds: float
) -> Answer:
    """Returns the first answer; whoever is asked next is so when one fails, or takes long."""
    failure: BaseException | None = None
    asked: set[asyncio.Task[Answer]] = set()
    left = [*asks]
    try:
        while asked or left:
            if left:
                asked.add(asyncio.create_task(left.pop(0)()))
            ended, asked = await asyncio.wait(
                asked,
                timeout=patience_seconds if left else None,
                return_when=asyncio.FIRST_COMPLETED,
            )
            failures = [task.exception() for task in ended]  # of all, or asyncio logs the others
            for task, failure in zip(ended, failures, strict=True):
                if failure is None:
                    return task.result()
                if not isinstance(failure, NO_ANSWER):
                    raise failure
    finally:
        for task in asked:
            task.cancel()
        await asyncio.gather(*asked, return_exceptions=True)
    assert failure
    raise failure


async def check_health(channel: grpc.aio.Channel, name: str, service: str, seconds: float) -> None:
    """Asks the health service of `service` for the one called `name` in the protos.

    Raises:
        UnavailableError: no replica can be reached, or is SERVING.
        DeadlineError: none answers within so many seconds.
    """
    check = channel.unary_unary(
        "/grpc.health.v1.Health/Check",
        request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
        response_deserializer=health_pb2.HealthCheckResponse.FromString,
    )
    deadline = asyncio.get_running_loop().time() + seconds
    answer = await ask(service, check, health_pb2.HealthCheckRequest(service=name), deadline)
    if answer.status != health_pb2.HealthCheckResponse.SERVING:
        raise UnavailableError(f"the {service} service is not serving", retry_after=1)
