"""What the system tells of memory, in files as Linux has them; and errors that mean its end."""

from __future__ import annotations

import errno
import resource
from pathlib import Path

import pytest

from protos.process.memory import (
    FreeMemory,
    free_host_memory,
    gib,
    is_out_of_memory,
    shortage,
)

MIB = 2**20


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return root


MACHINE = {"proc/meminfo": "MemTotal: 9000 kB\nMemAvailable: 4096 kB\nSwapFree: 1024 kB\n"}
VERSION_2 = {
    "proc/self/cgroup": "0::/pod/box\n",
    "sys/fs/cgroup/pod/memory.max": f"{4 * MIB}\n",
    "sys/fs/cgroup/pod/memory.stat": f"file 9999999\nanon {MIB}\n",
    "sys/fs/cgroup/pod/box/memory.max": "max\n",
}
VERSION_1 = {
    "proc/self/cgroup": "5:cpu:/\n4:memory:/box\n",
    "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{2 * MIB}\n",
    "sys/fs/cgroup/memory/memory.stat": f"cache 5\ntotal_rss {MIB}\n",
}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (MACHINE, FreeMemory(5 * MIB, "are free on this machine")),
        (MACHINE | VERSION_2, FreeMemory(3 * MIB, "are free in this container")),
        (MACHINE | VERSION_1, FreeMemory(MIB, "are free in this container")),
        ({"proc/self/cgroup": "nonsense\n"}, None),
        ({}, None),
    ],
)
def test_the_tightest_limit_counts(
    tmp_path: Path, files: dict[str, str], expected: FreeMemory | None
) -> None:
    assert free_host_memory(root=write(tmp_path, files)) == expected


def test_ulimit_counts_what_is_mapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = resource.getpagesize()
    monkeypatch.setattr(resource, "getrlimit", lambda _: (10 * page, 99 * page))
    root = write(tmp_path, MACHINE | {"proc/self/statm": "7 3 2 1 0 1 0\n"})
    assert free_host_memory(root=root) == FreeMemory(3 * page, "are free under ulimit -v")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: not enough memory"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_errors_that_mean_the_end_of_memory(error: Exception) -> None:
    assert is_out_of_memory(error)


@pytest.mark.parametrize("error", [RuntimeError("size mismatch"), OSError(errno.ENOENT, "x")])
def test_other_errors_do_not(error: Exception) -> None:
    assert not is_out_of_memory(error)


def test_a_sentence_says_what_is_needed_what_there_is_and_what_helps() -> None:
    assert shortage(
        [f"a takes {gib(3 * 2**29)}", f"b {gib(2**30)}"],
        FreeMemory(2**30, "are free here"),
        ["less of a", "less of b"],
    ) == (
        "there is too little memory: a takes 1.5 GiB, b 1.0 GiB; 1.0 GiB are free here."
        " What helps: less of a, or less of b"
    )
