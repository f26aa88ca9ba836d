"""Amounts of memory as people read them."""

from __future__ import annotations

MIB = 1024**2
GIB = 1024 * MIB


def in_bytes(byte_count: int) -> str:
    """Returns e.g. "104 MiB" or "14.42 GiB"."""
    if byte_count < GIB:
        return f"{byte_count / MIB:.0f} MiB"
    return f"{byte_count / GIB:.2f} GiB"
