"""Listening sockets, and how connections are accepted from them, also when descriptors run out."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Callable
from typing import Any

import structlog

from protos.process.rarely import Rarely

logger = structlog.get_logger()

BACKLOG = 1024
# Connections that are accepted before anything else has its turn.
BATCH_COUNT = 64
RETRY_SECONDS = 0.1
QUIET_SECONDS = 10.0
OUT_OF_DESCRIPTORS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


class RareEvent:
    """An event that is logged once in a while, with how often it came since."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._count = 0
        self._rarely = Rarely(QUIET_SECONDS)

    def note(self, **details: object) -> None:
        """Counts the event, and logs it with details unless one was logged a moment ago."""
        self._count += 1
        if self._rarely.lets():
            logger.warning(self._name, count=self._count, **details)
            self._count = 0


async def listen(host: str, port: int) -> list[socket.socket]:
    """Returns sockets that listen on all addresses of a host.

    Raises:
        OSError: one cannot be bound.
    """
    loop = asyncio.get_running_loop()
    try:
        server = await loop.create_server(asyncio.Protocol, host, port, start_serving=False)
    except OSError as error:
        number = error.errno or 0
        # A name that does not resolve has a number of its own kind, below 0.
        reason = os.strerror(number) if number > 0 else error.strerror
        raise OSError(f"cannot listen on {host}:{port}: {reason}") from error
    listeners = [bound.dup() for bound in server.sockets]
    server.close()
    for listener in listeners:
        listener.setblocking(False)
        listener.listen(BACKLOG)
    return listeners


async def accept(
    listener: socket.socket,
    connect: Callable[[], asyncio.Protocol],
    make_room: Callable[[], bool],
) -> None:
    """Serves each connection that comes, until it is cancelled.

    asyncio's own way logs a hundred tracebacks a second while descriptors are wanting.

    Args:
        listener: where they come.
        connect: returns the protocol of a new one.
        make_room: lets a descriptor go, and says whether it could.
    """
    loop = asyncio.get_running_loop()
    exhausted = RareEvent("out_of_descriptors")
    beginning: set[asyncio.Task[Any]] = set()
    while True:
        try:
            client, _ = await loop.sock_accept(listener)
        except OSError as error:
            is_exhausted = error.errno in OUT_OF_DESCRIPTORS
            if is_exhausted:
                exhausted.note()
            await asyncio.sleep(0 if is_exhausted and make_room() else RETRY_SECONDS)
            continue
        task = asyncio.create_task(loop.connect_accepted_socket(connect, client))
        beginning.add(task)
        task.add_done_callback(beginning.discard)
        if len(beginning) >= BATCH_COUNT:
            await asyncio.sleep(0)
