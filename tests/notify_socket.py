"""A supervisor's datagram socket, which keeps what processes tell it."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

Message = dict[str, str]
PATIENCE_SECONDS = 120.0


class NotifySocket:
    """What is told, in order.

    Attributes:
        address: for NOTIFY_SOCKET.
        messages: those that have been read.
    """

    def __init__(self, bound: socket.socket, address: str) -> None:
        self.address = address
        self.messages: list[Message] = []
        self._socket = bound

    def until(self, is_meant: Callable[[Message], bool]) -> Message:
        """Reads messages up to one that is meant, and returns it."""
        self._socket.settimeout(PATIENCE_SECONDS)
        while True:
            message = self._read()
            if is_meant(message):
                return message

    def waiting(self) -> list[Message]:
        """Returns what has come and was not read."""
        found = []
        self._socket.setblocking(False)
        while True:
            try:
                found.append(self._read())
            except BlockingIOError:
                return found

    def _read(self) -> Message:
        lines = self._socket.recv(65536).decode().splitlines()
        pairs = (line.partition("=") for line in lines)
        message = {name: value for name, _, value in pairs}
        self.messages.append(message)
        return message


@contextmanager
def notify_socket(folder: Path | None = None) -> Iterator[NotifySocket]:
    """Listens in a folder; without one at an abstract address, as of a container's supervisor."""
    address = str(folder / "notify") if folder else f"@internvl-notify-{os.getpid()}"
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as bound:
        bound.bind(address.replace("@", "\0"))
        yield NotifySocket(bound, address)
