"""Free ports of this machine."""

from __future__ import annotations

import errno
import os
import random
import socket
from collections import deque
from collections.abc import Sequence

LOOPBACK = "127.0.0.1"
# Below those that outgoing connections are given, on Linux and macOS: none of them takes a port
# from here between our look at it and the service's start.
FREE_PORTS = range(20_000, 32_768)
# How many ports may be found and not in use yet.
FOUND_COUNT = 64
_signs: deque[int] = deque()  # descriptors


def is_free(host: str, port: int) -> bool:
    """Says whether a server could listen there now.

    Raises:
        OSError: it is not an address of this machine, or not a port that we may take.
    """
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            server.bind((host, port))
            server.listen()
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            return False
    return True


def free_port(preferred: int = 0) -> int:
    """Returns a port of the loopback address: the preferred one, or one of FREE_PORTS."""
    if preferred and is_free(LOOPBACK, preferred):
        return preferred
    return common_port([LOOPBACK])


def common_port(hosts: Sequence[str]) -> int:
    """Returns one of FREE_PORTS that is free on all of these addresses, and found by nobody else.

    Raises:
        OSError: there is none.
    """
    for port in random.sample(FREE_PORTS, len(FREE_PORTS)):
        if all(is_free(host, port) for host in hosts) and _take(port):
            return port
    raise OSError(errno.EADDRINUSE, "no port from 20000 to 32767 is free")


def _take(port: int) -> bool:
    """Keeps other processes that look for a port, too, from this one; False: one of them has it.

    The sign is UDP's port of the same number, which nobody here uses: the system gives it to one
    process, and takes it back when that ends.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sign:
        try:
            sign.bind((LOOPBACK, port))
        except OSError:
            return False
        _signs.append(sign.detach())
    if len(_signs) > FOUND_COUNT:
        os.close(_signs.popleft())
    return True
