"""Cores: how many of the machine's this process may use."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from protos.process.control_groups import control_groups, lines


def usable_core_count(*, root: Path = Path("/")) -> int:
    """Returns the cores that its affinity and its containers leave to the process; 1 or more.

    Args:
        root: where /proc and /sys are.
    """
    affinity = getattr(os, "sched_getaffinity", None)  # Linux has it
    cores = _core_count(affinity(0), root) if affinity else os.cpu_count() or 1
    return max(1, min([cores, *map(math.ceil, _quotas(root))]))


def _core_count(cpus: Iterable[int], root: Path) -> int:
    """Returns how many cores some CPUs are: two threads of a core share its units for products."""
    folder = root / "sys/devices/system/cpu"
    siblings = (
        "".join(lines(folder / f"cpu{cpu}/topology/thread_siblings_list")).strip() or f"{cpu}"
        for cpu in cpus
    )
    return len(set(siblings))


def _quotas(root: Path) -> Iterator[float]:
    """Yields the cores' time that each control group of this process may take."""
    for version, folder in control_groups("cpu", root):
        if version == 2:
            words = " ".join(lines(folder / "cpu.max")).split()
        else:
            names = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
            words = [word for name in names for word in lines(folder / name)]
        # "max" and -1 are none.
        if len(words) == 2 and all(word.isdecimal() and int(word) for word in words):
            yield int(words[0]) / int(words[1])
