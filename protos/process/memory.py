"""Memory: how much a process may still take, its size in words, and which errors mean its end."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from protos.process.control_groups import control_groups, lines
from protos.process.settings import GIB, KIB, MIB

# What libraries say where they raise no class of their own for it: PyTorch on the host and on a
# GPU, cuBLAS, and the C library through others.
COMPLAINTS = (
    "DefaultCPUAllocator",
    "out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "Cannot allocate memory",
)


@dataclass(frozen=True)
class FreeMemory:
    """What a process may still take.

    Attributes:
        byte_count: at most so many bytes.
        source: what sets the limit, as a sentence goes on: "are free on this machine".
    """

    byte_count: int
    source: str


def gib(byte_count: float) -> str:
    """Returns a size in words, e.g. "1.5 GiB"; less than a tenth of that in MiB."""
    if byte_count < GIB / 10:
        return f"{byte_count / MIB:.1f} MiB"
    return f"{byte_count / GIB:.1f} GiB"


def free_host_memory(*, root: Path = Path("/")) -> FreeMemory | None:
    """Returns the tightest of what the machine, the container and ulimit leave; None: not known.

    Memory that holds copies of files counts as free: it is given back when it is asked for.

    Args:
        root: where /proc and /sys are.
    """
    limits = [*_machine(root), *_containers(root), *_address_space(root)]
    return min(limits, key=lambda limit: limit.byte_count, default=None)


def shortage(needs: Sequence[str], free: FreeMemory | None, ways: Sequence[str]) -> str:
    """Returns a sentence: what takes how much, what there is, and what helps."""
    there = "" if free is None else f"; {gib(free.byte_count)} {free.source}"
    return (
        f"there is too little memory: {', '.join(needs)}{there}. What helps: {', or '.join(ways)}"
    )


def is_out_of_memory(error: BaseException) -> bool:
    """Returns whether an exception says that there is no memory left, be it the host's or a GPU's.

    PyTorch has a class for its GPUs' memory alone, and that knows no torch here.
    """
    if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
        return True
    return any(complaint in str(error) for complaint in COMPLAINTS)


def _machine(root: Path) -> Iterator[FreeMemory]:
    found = _table(root / "proc/meminfo")
    if "MemAvailable:" in found:
        free = found["MemAvailable:"] + found.get("SwapFree:", 0)
        yield FreeMemory(free * KIB, "are free on this machine")


def _containers(root: Path) -> Iterator[FreeMemory]:
    """Yields what each control group that this process is in leaves."""
    for version, folder in control_groups("memory", root):
        yield from _group(folder, "memory.max" if version == 2 else "memory.limit_in_bytes")


def _group(folder: Path, limit: str) -> Iterator[FreeMemory]:
    (value,) = lines(folder / limit)[:1] or ["max"]
    if value.isdecimal():
        statistics = _table(folder / "memory.stat")
        used = statistics.get("anon", statistics.get("total_rss", 0))
        yield FreeMemory(max(0, int(value) - used), "are free in this container")


def _address_space(root: Path) -> Iterator[FreeMemory]:
    """Yields what `ulimit -v` leaves, which counts mapped files too."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    pages = lines(root / "proc/self/statm")
    if limit != resource.RLIM_INFINITY and pages:
        used = int(pages[0].split()[0]) * os.sysconf("SC_PAGE_SIZE")
        yield FreeMemory(max(0, limit - used), "are free under ulimit -v")


def _table(file: Path) -> dict[str, int]:
    """Reads lines of a name and a number."""
    rows = (line.split() for line in lines(file))
    return {row[0]: int(row[1]) for row in rows if len(row) > 1 and row[1].isdecimal()}
