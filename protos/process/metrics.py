"""The page that Prometheus reads: how a process serves its metrics over HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import structlog
from prometheus_client import CollectorRegistry, disable_created_metrics, start_http_server

logger = structlog.get_logger()


@contextmanager
def serving_metrics(
    registry: CollectorRegistry, host: str, port: int | None
) -> Iterator[int | None]:
    """Serves metrics over HTTP from a thread; without a port it serves none.

    Yields:
        The port that was bound.

    Raises:
        OSError: the address cannot be bound.
    """
    if port is None:
        yield None
        return
    # Of each counter and histogram, a series that no chart shows.
    disable_created_metrics()  # type: ignore[no-untyped-call]
    try:
        server, thread = start_http_server(port, host, registry)
    except OSError as error:
        raise OSError(f"cannot serve metrics on {host}:{port}: {error.strerror}") from error
    logger.info("serving_metrics", host=host, port=server.server_port)
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
