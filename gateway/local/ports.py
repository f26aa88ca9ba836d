"""Free ports of this machine."""

from __future__ import annotations

import errno
import random
import socket

LOOPBACK = "127.0.0.1"
# Below those that outgoing connections are given, on Linux and macOS: nobody takes a port from here
# by chance between our look at it and the service's start.
FREE_PORTS = range(20_000, 32_768)


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
    ports = random.sample(FREE_PORTS, len(FREE_PORTS))
    return next(port for port in ports if is_free(LOOPBACK, port))
