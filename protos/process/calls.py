"""What happens to every call of a gRPC server: its place, its messages, its errors, its line."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from collections.abc import Set as AbstractSet
from contextlib import aclosing, contextmanager
from functools import partial
from typing import Any

import grpc
import structlog
from google.protobuf.message import DecodeError
from grpc_status import rpc_status

from protos.errors import (
    AccessDeniedError,
    DeadlineError,
    InvalidArgumentError,
    OverloadedError,
    ServiceError,
)
from protos.process.call_record import accounted
from protos.process.credentials import peer_names
from protos.process.logs import bind_request_id, request_id_of
from protos.process.memory import is_out_of_memory
from protos.process.rarely import Rarely
from protos.status import to_status

logger = structlog.get_logger()

Context = grpc.aio.ServicerContext[Any, Any]
# How soon a stream must say what it wants. It holds a place among the calls.
FIRST_MESSAGE_SECONDS = 10.0
# How soon the one message of another call must be here: it may be a file that comes from afar.
ONLY_MESSAGE_SECONDS = 60.0
# Of one method of gRPC's own services, whose watchers stay for as long as they like, and of one
# that a service is asked what it is, how it fares or what it would do: it must answer when all
# places are taken.
MAX_SIDE_CALL_COUNT = 256
QUESTIONS = ("/GetModelInfo", "/GetLoad", "/PlanTiles")
# It takes no place: it is answered at once, and must be answered when all places are taken.
HEALTH_CHECK = "/grpc.health.v1.Health/Check"
# Everybody who may connect is told of it, also who only probes.
HEALTH = "/grpc.health.v1.Health/"
# After a line in the log that says who was refused.
QUIET_SECONDS = 1.0


class Places:
    """How many calls may run at a time.

    Attributes:
        idle: set while none runs.
    """

    def __init__(self, max_count: int) -> None:
        self.idle = asyncio.Event()
        self.idle.set()
        self._max_count = max_count
        self._count = 0

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Takes a place for the time of the block.

        Raises:
            OverloadedError: there is none.
        """
        if self._count >= self._max_count:
            raise OverloadedError(
                f"{self._count} calls are running; the limit is {self._max_count}", retry_after=1.0
            )
        self._count += 1
        self.idle.clear()
        try:
            yield
        finally:
            self._count -= 1
            if not self._count:
                self.idle.set()


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Counts calls, reads their messages, and turns exceptions into status with google.rpc details.

    To gRPC every call is a stream of bytes in both directions. It would read the message of a unary
    call before anybody could count the call or limit its time, and answer one that is malformed, or
    none, by a traceback in the log or not at all.

    A call has a line in the log when it is over: what it cost, never what it said.

    The one place that catches everything: a ServiceError crosses the wire as it is; anything else
    is a bug, logged with its traceback and answered by INTERNAL without it.
    """

    def __init__(
        self,
        max_call_count: int,
        on_error: Callable[[ServiceError], None],
        client_names: AbstractSet[str] | None = None,
    ) -> None:
        """Makes it.

        Args:
            max_call_count: most calls of our services at a time.
            on_error: is told of each error that ends a call.
            client_names: of which a caller's certificate must have one, as a DNS name or a URI;
                None: callers need no certificate.
        """
        self._on_error = on_error
        self._client_names = client_names
        self._rarely = Rarely(QUIET_SECONDS)  # who calls in vain may do so often
        self._places = Places(max_call_count)
        self._side_places: dict[str, Places] = defaultdict(lambda: Places(MAX_SIDE_CALL_COUNT))

    @property
    def idle(self) -> asyncio.Event:
        """Set while no call of our services runs."""
        return self._places.idle

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Returns the handler of any call; None for a method that is not here."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        call = partial(self._call, handler, handler_call_details)
        return grpc.stream_stream_rpc_method_handler(call, None, handler.response_serializer)

    async def _call(
        self,
        handler: Any,
        details: grpc.HandlerCallDetails,
        requests: AsyncIterator[bytes],
        context: Context,
    ) -> AsyncGenerator[Any, None]:
        bind_request_id(request_id_of(details.invocation_metadata))
        method = details.method
        with accounted(
            method.lstrip("/"),
            details.invocation_metadata,
            context.time_remaining,
            is_aside=_is_aside(method),
        ) as record:
            try:
                self._check_caller(method, context)
                if method == HEALTH_CHECK:
                    yield await _answer(handler, requests, context)
                    return
                with self._places_of(method).taken():
                    if not handler.response_streaming:
                        yield await _answer(handler, requests, context)
                        return
                    async with aclosing(_answers(handler, requests, context)) as responses:
                        async for response in responses:
                            yield response
            except grpc.aio.AbortError:
                raise
            except Exception as error:  # noqa: BLE001 - the one place for it: see the class
                record.error = told = _told(error)
                self._on_error(told)
                status = rpc_status.to_status(to_status(told))
                await context.abort(status.code, status.details, status.trailing_metadata)

    def _check_caller(self, method: str, context: Context) -> None:
        """Raises AccessDeniedError if the caller is none of those that may call the method."""
        if self._client_names is None or method.startswith(HEALTH):
            return
        if self._client_names.isdisjoint(names := peer_names(context)):
            if self._rarely.lets():
                logger.warning(
                    "caller_denied",
                    names=names,
                    address=context.peer(),
                    warning="the certificate has none of the names in --tls-client-names",
                )
            raise AccessDeniedError(
                f"the caller's certificate is for {', '.join(names) or 'no name'}, which is none of"
                " this service's clients"
            )

    def _places_of(self, method: str) -> Places:
        return self._side_places[method] if _is_aside(method) else self._places


def _is_aside(method: str) -> bool:
    return method.startswith("/grpc.") or method.endswith(QUESTIONS)


async def _answer(handler: Any, requests: AsyncIterator[bytes], context: Context) -> Any:
    return await handler.unary_unary(await _only_message(handler, requests), context)


async def _answers(
    handler: Any, requests: AsyncIterator[bytes], context: Context
) -> AsyncGenerator[Any, None]:
    if handler.request_streaming:
        responses = handler.stream_stream(_messages(handler, requests), context)
    else:
        responses = handler.unary_stream(await _only_message(handler, requests), context)
    async with aclosing(responses):
        async for response in responses:
            yield response


async def _only_message(handler: Any, requests: AsyncIterator[bytes]) -> Any:
    data = await _within(ONLY_MESSAGE_SECONDS, requests)
    if data is None:
        raise InvalidArgumentError("the call ended without a message")
    return _parsed(handler, data)


async def _messages(handler: Any, requests: AsyncIterator[bytes]) -> AsyncGenerator[Any, None]:
    first = await _within(FIRST_MESSAGE_SECONDS, requests)
    if first is None:
        return
    yield _parsed(handler, first)
    del first
    async for data in requests:
        yield _parsed(handler, data)


async def _within(seconds: float, requests: AsyncIterator[bytes]) -> bytes | None:
    """Returns the next message; None if the caller sends no more."""
    try:
        return await asyncio.wait_for(anext(requests, None), seconds)
    except asyncio.TimeoutError as error:
        raise DeadlineError(f"no message came within {seconds:g} seconds") from error


def _parsed(handler: Any, data: bytes) -> Any:
    try:
        return handler.request_deserializer(data)
    except DecodeError as error:
        raise InvalidArgumentError("the message is not valid protobuf") from error


def _told(error: Exception) -> ServiceError:
    """Returns what the caller is told of an exception."""
    if isinstance(error, ServiceError):
        return error
    if is_out_of_memory(error):
        logger.error("call_out_of_memory", error=str(error), exc_info=error)
        return OverloadedError("the service has no memory for this call", retry_after=1.0)
    logger.error("bug", exc_info=error)
    return ServiceError("internal error; the service's log has it under this request id")
