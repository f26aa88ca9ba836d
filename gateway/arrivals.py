"""How a request with a body comes in: counted, limited in time and memory, and given a place."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Iterator
from contextlib import asynccontextmanager, contextmanager

from aiohttp import web

from gateway.admission import visiting
from gateway.app_keys import MEMORY, RECORD, SETTINGS, TRAFFIC
from gateway.bodies import receive
from gateway.images.data_urls import Body
from gateway.images.json_paths import JSONPath
from protos.process.tracing import span

OVERTIME_SECONDS = 1.0


@asynccontextmanager
async def arrived(
    request: web.Request, image_places: Collection[JSONPath] = ()
) -> AsyncIterator[tuple[Body, float]]:
    """Yields a request's body, and when its answer must be over, in the event loop's time.

    What the request holds is counted until the block is left. For `image_places` see `BodyReader`.

    Raises:
        UnavailableError: the gateway drains.
        OverloadedError: there is no place for it, or no memory.
        CallerLimitError: its caller has too many in flight, or has sent too many in a minute.
        ServiceError, HTTPException: what `receive` raises.
    """
    app = request.app
    deadline = asyncio.get_running_loop().time() + app[SETTINGS].request_seconds
    with (
        app[TRAFFIC].arrival(),
        visiting(request),
        app[MEMORY].share() as share,
        _connection_until(deadline, request),
    ):
        with request[RECORD].timed("body"), span("body"):
            limits = app[SETTINGS].body_limits
            bodies = [await receive(request, limits, share, image_places)]
        with app[TRAFFIC].place():
            yield bodies.pop(), deadline  # no more in here: who has it may drop its text


@contextmanager
def _connection_until(deadline: float, request: web.Request) -> Iterator[None]:
    """Breaks the connection off some time after the deadline.

    The services keep the deadline themselves; this is for clients that do not send or do not read,
    which would otherwise hold a place in the traffic for ever.
    """
    if request.transport is None:  # the client is gone already
        raise ConnectionResetError
    loop = asyncio.get_running_loop()
    timer = loop.call_at(deadline + OVERTIME_SECONDS, request.transport.abort)
    try:
        yield
    finally:
        timer.cancel()
