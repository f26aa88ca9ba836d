"""A request's lines when it is over: in the log, in the usage log; and its part of the metrics."""

from __future__ import annotations

import asyncio
from datetime import datetime, timezone
from typing import Any

import structlog
from aiohttp import hdrs, web

from gateway.app_keys import CALLER, METRICS, RECORD, REQUEST_ID, SETTINGS, USAGE_LOG
from gateway.openai.errors import reason_status
from gateway.paths import QUIET_PATHS
from gateway.record import RequestRecord

logger = structlog.get_logger()

# What nginx logs when the client went away before the answer.
CLIENT_CLOSED_REQUEST = 499
UNKNOWN_ROUTE = "none"


def write_lines(request: web.Request, status: int) -> asyncio.Future[None] | None:
    """Notes what a request cost, never what it said.

    Returns:
        What is done when its line is in the usage log; None where it has none.
    """
    record = request[RECORD]
    resource = request.match_info.route.resource
    # Of the router's table: what a client typed may hold anything.
    route = resource.canonical if resource else UNKNOWN_ROUTE
    _log(request, route, status, record)
    request.app[METRICS].count_request(route, status, record)
    usage_log = request.app[USAGE_LOG]
    is_use = request.method == hdrs.METH_POST and resource and CALLER in request
    if usage_log is None or not is_use:
        return None
    return usage_log.add(_usage(request, route, status, record))


def _log(request: web.Request, route: str, status: int, record: RequestRecord) -> None:
    shown = request.app[SETTINGS].access_log
    if max(status, reason_status(record.error)) >= 500:
        log = logger.warning
    elif shown == "all" or (shown == "requests" and route not in QUIET_PATHS):
        log = logger.info
    else:
        log = logger.debug
    log(
        "request",
        route=route,
        status=status,
        client_address=request.remote,
        total_seconds=record.elapsed(),
        **record.costs(),
    )


def _usage(request: web.Request, route: str, status: int, record: RequestRecord) -> dict[str, Any]:
    return {
        "time": datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
        "request_id": request[REQUEST_ID],
        "caller": record.caller,
        "route": route,
        "model": record.model,
        "status": status,
        "outcome": _outcome(status, record),
        "total_seconds": record.elapsed(),
        "body_byte_count": request.content.total_bytes,
        **record.counts(),
    }


def _outcome(status: int, record: RequestRecord) -> str:
    if status == CLIENT_CLOSED_REQUEST:
        return "client_gone"
    return record.error or ("ok" if status < 400 else "refused")
