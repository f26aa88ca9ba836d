"""Memory that is freed is there for the next chunk, without a page fault."""

from __future__ import annotations

import subprocess
import sys

import psutil
import pytest

from protos.process.allocator import give_back_freed_memory

PROGRAM = """
import resource, sys
from protos.process.allocator import keep_freed_memory

if sys.argv[1] == "kept":
    keep_freed_memory()
for _ in range(60):
    if _ == 10:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    chunks = [b"x" * 512 * 1024 for _ in range(16)]
    del chunks
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="it is glibc that gives memory back")
def test_chunks_find_the_memory_of_those_before() -> None:
    fault_counts = {
        name: int(subprocess.check_output([sys.executable, "-c", PROGRAM, name]))
        for name in ("kept", "given back")
    }
    assert fault_counts["given back"] > 10_000, "the C library keeps it by itself"
    assert fault_counts["kept"] < 1000


@pytest.mark.skipif(sys.platform != "linux", reason="it is glibc that gives memory back")
def test_what_a_start_has_freed_is_given_back() -> None:
    process = psutil.Process()
    blocks = [b"x" * 64 * 1024 for _ in range(2000)]
    last = blocks[-1]  # what is behind the others, so that these are no heap's end
    full = process.memory_info().rss
    del blocks
    give_back_freed_memory()
    assert full - process.memory_info().rss > 100 * 2**20
    assert last
