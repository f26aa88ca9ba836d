"""The files that this process may have open: connections, pictures, services and log share them."""

from __future__ import annotations

import resource

# What needs them besides clients' connections: this many at least, or a quarter.
LEAST_OTHER_COUNT = 64
DEFAULT_MAX_CONNECTION_COUNT = 4096
# Connections beyond their limit, for health checks alone.
SPARE_COUNT = 32


def raise_descriptor_limit() -> None:
    """Lets this process open as many files as its hard limit allows, where the system agrees."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError):
        return  # macOS calls the hard limit infinite, and then refuses it


def most_connections() -> int:
    """Returns how many connections the limit of open files has room for."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY:
        return 2**31 - 1
    return max(1, limit - SPARE_COUNT - max(LEAST_OTHER_COUNT, limit // 4))


def default_connection_count() -> int:
    """Returns how many connections may be open unless an option says otherwise."""
    return min(DEFAULT_MAX_CONNECTION_COUNT, most_connections())
