"""What surrounds every request: its id, its line in the log, and errors in its path's dialect."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from typing import cast

import structlog
from aiohttp import hdrs, web

from gateway.access.authentication import InvalidKeyError, authenticated
from gateway.access.callers import ANYBODY, Caller
from gateway.admission import account_of
from gateway.app_keys import (
    CALLER,
    CONNECTIONS,
    DIALECT_BY_PATH,
    KEY_RING,
    METRICS,
    ORIGINS,
    RECORD,
    REQUEST_ID,
    USAGE_LOG,
)
from gateway.connections import SERVER_NAME, Connection
from gateway.openai.errors import HTTPRefusalError, error_response
from gateway.openai.rate_headers import rate_headers
from gateway.paths import HEALTH_PATHS, OPEN_PATHS, guidance
from gateway.record import RequestRecord
from gateway.request_lines import CLIENT_CLOSED_REQUEST, write_lines
from protos.errors import (
    AccessDeniedError,
    InvalidArgumentError,
    ServiceError,
    UnavailableError,
)
from protos.process.logs import REQUEST_ID_KEY, bind_request_id, new_request_id

logger = structlog.get_logger()

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
SANE_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
IGNORED_KEY = "x-internvl-ignored"


@web.middleware
async def attend(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Tells the request's connection that it is at work."""
    connection = _connection(request)
    connection.begin(request)
    response = await handler(request)
    if connection.is_spare or connection.leaves_unread:
        response.force_close()
    return response


@web.middleware
async def keep_spare(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Refuses all but health checks on connections beyond their limit."""
    if _connection(request).is_spare and request.path not in HEALTH_PATHS:
        connections = request.app[CONNECTIONS]
        raise UnavailableError(
            f"{len(connections)} connections are open; the limit is {connections.limits.max_count}",
            retry_after=1,
        )
    return await handler(request)


def _connection(request: web.Request) -> Connection:
    return cast(Connection, request.protocol)


@web.middleware
async def identify(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Takes the client's request id, or makes one; it goes into logs, services and the answer."""
    given = request.headers.get(REQUEST_ID_KEY, "")
    request[REQUEST_ID] = given if SANE_REQUEST_ID.fullmatch(given) else new_request_id()
    bind_request_id(request[REQUEST_ID])
    return await handler(request)


async def sign(request: web.Request, response: web.StreamResponse) -> None:
    """Says in the head of an answer who sends it, to which request, and which pages may read it."""
    response.headers[hdrs.SERVER] = SERVER_NAME
    if REQUEST_ID in request:
        response.headers[REQUEST_ID_KEY] = request[REQUEST_ID]
        if (dialect := request.app[DIALECT_BY_PATH].get(request.path)) and dialect.request_id_key:
            response.headers[dialect.request_id_key] = request[REQUEST_ID]
    if RECORD in request and (names := request[RECORD].ignored_fields):
        response.headers[IGNORED_KEY] = names
    if CALLER in request and (account := account_of(request)):
        dialect = request.app[DIALECT_BY_PATH].get(request.path)
        written = dialect.rate_headers if dialect else rate_headers
        response.headers.extend(written(account.rates()))
    response.headers.extend(request.app[ORIGINS].answer_headers(request.headers))


@web.middleware
async def answer_preflight(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answers what a browser asks before it lets a page of another origin call."""
    if request.method == hdrs.METH_OPTIONS:
        headers = request.app[ORIGINS].preflight_headers(request.headers)
        if headers is not None:
            return web.Response(status=204, headers=headers)
    return await handler(request)


@web.middleware
async def refuse_foreign_pages(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Lets no web page that its reader happens to look at use the model."""
    if request.method == hdrs.METH_POST and request.app[ORIGINS].is_foreign(request.headers):
        raise AccessDeniedError(
            "a web page of another origin asks; start the gateway with --allowed-origins"
            " and that page's origin if it may"
        )
    return await handler(request)


@web.middleware
async def authenticate(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Finds out who calls, before anything of the body is read."""
    request[CALLER] = _caller(request)
    return await handler(request)


def _caller(request: web.Request) -> Caller:
    ring, record = request.app[KEY_RING], request[RECORD]
    if ring is None:
        record.caller = ANYBODY.name
        return ANYBODY
    resource = request.match_info.route.resource
    if resource is not None and resource.canonical in OPEN_PATHS:
        return ANYBODY
    try:
        caller = authenticated(ring, request.headers)
    except InvalidKeyError as error:
        if error.caller is not None:
            record.caller = error.caller.name
        request.app[METRICS].callers.count_failure(error.fault)
        _connection(request).leave_unread(request)
        raise
    record.caller = caller.name
    return caller


@web.middleware
async def account(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Notes what a request cost when it is over, before its client has the answer's end."""
    request[RECORD] = RequestRecord()
    status = 500
    try:
        response = await handler(request)
        status = response.status
    except (asyncio.CancelledError, ConnectionError):
        status = CLIENT_CLOSED_REQUEST
        raise
    finally:
        usage = write_lines(request, status)
        request[RECORD].tallies.clear()  # they hold its text; aiohttp keeps it until the next one
    if usage and (usage_log := request.app[USAGE_LOG]):
        await usage_log.written(usage)
    return response


@web.middleware
async def answer_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turns exceptions into answers, as long as none has begun.

    The one place that catches everything: a ServiceError is told to the client; anything else is a
    bug, logged with its traceback and answered by 500 without it.
    """
    try:
        return await handler(request)
    except (web.HTTPNotFound, web.HTTPMethodNotAllowed) as error:  # of a path or a file
        return _answer(request, HTTPRefusalError(error, guidance(request)))
    except web.HTTPException as error:
        return _answer(request, HTTPRefusalError(error))
    except ServiceError as error:
        request[RECORD].error = error.reason
        return _answer(request, error)
    except ConnectionError:  # the client is gone: nobody reads an answer
        return web.Response(status=CLIENT_CLOSED_REQUEST)
    except web.RequestPayloadError:
        return _answer(request, InvalidArgumentError("the body is not what its headers say"))
    except Exception as error:
        logger.error("bug", exc_info=error)
        request[RECORD].error = ServiceError.reason
        if request.writer.output_size:  # the answer has begun: aiohttp breaks the connection off
            raise
        return _answer(request, ServiceError("internal error; the gateway's log has it"))


def _answer(request: web.Request, error: ServiceError) -> web.Response:
    """Returns the answer of an error, in the dialect of the request's path."""
    dialect = request.app[DIALECT_BY_PATH].get(request.path)
    body = dialect.error_body(error, request[REQUEST_ID]) if dialect else None
    return error_response(error, body)
