"""The way to a service: its channel, its health, and its failed calls as our errors."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import grpc
import structlog
from grpc_health.v1 import health_pb2

from protos.errors import (
    AccessDeniedError,
    DeadlineError,
    EngineDeadError,
    ServiceError,
    UnavailableError,
)
from protos.process.settings import MIB
from protos.status import from_rpc_error
from protos.transport import KEEPALIVE_OPTIONS

logger = structlog.get_logger()

# What the caller calls a field of the contract, e.g. "top_p" for "sampling.top_p".
FieldNamer = Callable[[str], str]

VISION_SERVICE = "internvl.v1.VisionService"
LLM_SERVICE = "internvl.v1.LLMService"
# grpc's own words in the place of the service's status: of a write into a call that ends at this
# very moment, and of a wire on which bytes were lost or changed.
BROKEN_WRITE = "Internal error from Core"
BROKEN_WIRE = "Stream removed"
# gRPC tries again only while nothing has come back: an encoding that has sent its header, or a
# generation that has said which images it wants, is never repeated.
SERVICE_CONFIG = {
    "loadBalancingConfig": [{"round_robin": {}}],
    "methodConfig": [
        {
            "name": [{"service": VISION_SERVICE}, {"service": LLM_SERVICE}],
            "retryPolicy": {
                "maxAttempts": 3,
                "initialBackoff": "0.1s",
                "maxBackoff": "1s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ],
}
CHANNEL_OPTIONS = [
    ("grpc.service_config", json.dumps(SERVICE_CONFIG)),
    # An image file has to fit, or its call could not be tried again.
    ("grpc.per_rpc_retry_buffer_size", 64 * MIB),
    # gRPC would let the receive window grow with the bandwidth, to 10 MB an image and more.
    ("grpc.http2.bdp_probe", 0),
    # Proxies of the environment stand between us and the world, not between us and the services.
    ("grpc.enable_http_proxy", 0),
    # How soon a service that has restarted is found again.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1000),
    ("grpc.max_reconnect_backoff_ms", 1000),
]


def open_channel(address: str) -> grpc.aio.Channel:
    """Returns a channel to a service, balanced over all addresses of the name."""
    return grpc.aio.insecure_channel(address, options=[*KEEPALIVE_OPTIONS, *CHANNEL_OPTIONS])


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
        logger.warning("unavailable", service=service, details=error.details())
        return UnavailableError(f"the {service} service is unavailable", retry_after=1)
    if isinstance(failure, AccessDeniedError):
        # It denies the gateway something, not the gateway's client.
        logger.error("denied", service=service, details=failure.message)
        return ServiceError(f"the {service} service refused what the gateway passed on to it")
    if isinstance(failure, DeadlineError):
        return DeadlineError(f"the {service} service did not end within the request's time")
    return failure


def _broke_off(error: grpc.aio.AioRpcError) -> bool:
    """Returns whether the call itself has failed, not the service behind it."""
    details = error.details() or ""
    is_wire = error.code() is grpc.StatusCode.UNKNOWN and details.startswith(BROKEN_WIRE)
    return is_wire or details == BROKEN_WRITE or error.code() is grpc.StatusCode.CANCELLED


async def check_health(channel: grpc.aio.Channel, name: str, service: str, seconds: float) -> None:
    """Asks the health service of `service` for the one called `name` in the protos.

    Raises:
        UnavailableError: it cannot be reached, or is not SERVING.
        DeadlineError: it does not answer within so many seconds.
    """
    check = channel.unary_unary(
        "/grpc.health.v1.Health/Check",
        request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
        response_deserializer=health_pb2.HealthCheckResponse.FromString,
    )
    with errors_of(service):
        answer = await check(health_pb2.HealthCheckRequest(service=name), timeout=seconds)
    if answer.status != health_pb2.HealthCheckResponse.SERVING:
        raise UnavailableError(f"the {service} service is not serving", retry_after=1)
