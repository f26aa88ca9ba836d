"""The page that Prometheus reads: how a process serves its metrics over HTTP."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import structlog
from prometheus_client import CollectorRegistry, disable_created_metrics, make_wsgi_app

logger = structlog.get_logger()

# In seconds. vLLM's of the time to the first token, so that dashboards can show both.
FIRST_TOKEN_BUCKETS = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75),
    *(1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640, 2560),
)


class _Server(WSGIServer):
    """Serves one reader at a time, so that no number of them costs more than one."""

    request_queue_size = 64

    def handle_error(self, request: object, client_address: object) -> None:
        """Says nothing: a reader was silent, or has gone."""


class _Handler(WSGIRequestHandler):
    timeout = 5.0  # seconds, of a reader that says nothing

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        """Says nothing: Prometheus comes every few seconds."""


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
        app = make_wsgi_app(registry)
        server = make_server(host, port, app, _Server, _Handler)
    except OSError as error:
        raise OSError(f"cannot serve metrics on {host}:{port}: {error.strerror}") from error
    thread = threading.Thread(target=server.serve_forever, name="metrics")
    thread.start()
    logger.info("serving_metrics", host=host, port=server.server_port)
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
