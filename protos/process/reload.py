"""What a process reads anew on SIGHUP: keys, certificates, files that were rotated."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import structlog

from protos.process.supervisor import supervisor

logger = structlog.get_logger()
_rereads: list[Callable[[], None]] = []


@contextmanager
def on_reload(reread: Callable[[], None]) -> Iterator[None]:
    """Calls `reread` on the event loop at each SIGHUP, for as long as the block runs.

    It says in the log what cannot be used, and keeps what it had.
    """
    _rereads.append(reread)
    try:
        yield
    finally:
        _rereads.remove(reread)


def reload_on_sighup() -> None:
    """Makes SIGHUP call all that `on_reload` was given, until the running event loop closes."""
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGHUP, _reload, loop)


def _reload(loop: asyncio.AbstractEventLoop) -> None:
    logger.info("reloading")
    supervisor().rereads()
    for reread in _rereads:
        loop.call_soon(reread)  # so that what one of them raises keeps none from running
    loop.call_soon(supervisor().tell, "READY=1")
