"""The benchmark of a start: what it reads, and all of it on a tiny model."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from tests.benchmarks import start

SAID = [
    "vision service: starting; its log is /x/vision.log\n",
    "LLM service: starting; its log is /x/llm.log\n",
    "gateway: starting; its log is /x/gateway.log\n",
    "vision service: serves on port 1 after 2 s\n",
    "LLM service: serves on port 2 after 3 s\n",
    "gateway: serves on port 3 after 3 s\n",
    "toy is served at http://127.0.0.1:3/v1; Ctrl-C stops it\n",
]


def test_it_reads_when_each_process_serves() -> None:
    seconds = start.read_seconds(iter(SAID), time.perf_counter() - 1)
    assert list(seconds) == ["vision", "llm", "gateway", "all three"]
    assert seconds["all three"] > 1 > seconds["vision"] > 0


def test_a_command_that_ends_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="the services did not start"):
        start.read_seconds(iter(SAID[:-1]), time.perf_counter())


def test_memory_is_that_of_all_children() -> None:
    alone = start.Memory.of(os.getpid())
    assert alone.rss > alone.pss > alone.private > 0
    wait = "print(flush=True); import time; time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", wait], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        together = start.Memory.of(os.getpid())
        child.kill()
    assert together.rss - alone.rss > 4 * 2**20


@pytest.mark.slow
def test_a_tiny_model() -> None:
    report = start.run(lambda _: None, tiny=True, repeat_count=1)
    names = ("vision service", "LLM service", "gateway", "all three")
    cases = [f"{dtype}: {name}" for dtype in start.DTYPES for name in names]
    assert [row[0] for row in report.rows] == cases
    assert all(float(cell.replace(",", "")) > 0 for row in report.rows for cell in row[1:])
