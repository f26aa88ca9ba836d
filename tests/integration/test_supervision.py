"""What real processes tell their supervisor, and when they fall silent."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from protos.process.supervisor import Supervisor, supervisor
from tests.notify_socket import Message, NotifySocket, notify_socket

WATCHDOG_SECONDS = 0.4
SCRIPTED = "from tests.unit.gateway.scripted_service import run; run({name!r})"
SCRIPTED_OPTIONS = ("--checkpoint", ".", "--served-model-name", "toy", "--port", "0")
PROGRAMS = {
    "gateway": ("-m", "gateway", "--port", "0"),
    "vision": ("-c", SCRIPTED.format(name="vision"), *SCRIPTED_OPTIONS),
    "llm": ("-c", SCRIPTED.format(name="llm"), *SCRIPTED_OPTIONS),
}


def is_ready(message: Message) -> bool:
    return message.get("READY") == "1"


def is_alive(message: Message) -> bool:
    return message == {"WATCHDOG": "1"}


@contextmanager
def started(words: tuple[str, ...], **variables: str) -> Iterator[subprocess.Popen[bytes]]:
    """Starts Python with variables; it is killed at the end, if it still runs."""
    process = subprocess.Popen([sys.executable, *words], env={**os.environ, **variables})
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def watched(listener: NotifySocket) -> dict[str, str]:
    """Returns the variables that a supervisor with a watchdog sets."""
    return {
        "NOTIFY_SOCKET": listener.address,
        "WATCHDOG_USEC": f"{WATCHDOG_SECONDS * 1e6:.0f}",
    }


@pytest.mark.parametrize("name", ["gateway", "llm", pytest.param("vision", marks=pytest.mark.slow)])
def test_a_process_tells_when_it_serves_lives_rereads_and_drains(name: str, tmp_path: Path) -> None:
    with notify_socket(tmp_path) as listener, started(PROGRAMS[name], **watched(listener)) as one:
        ready = listener.until(is_ready)
        assert ready["STATUS"].startswith("serving on 127.0.0.1:")
        for _ in range(3):
            listener.until(is_alive)
        before = time.monotonic_ns() // 1000
        one.send_signal(signal.SIGHUP)
        reloading = listener.until(lambda message: "RELOADING" in message)
        assert before <= int(reloading["MONOTONIC_USEC"]) <= time.monotonic_ns() // 1000
        listener.until(is_ready)
        listener.until(is_alive)
        one.send_signal(signal.SIGTERM)
        draining = listener.until(lambda message: "STOPPING" in message)
        assert draining["STATUS"] == "draining"
        # More than the drain that the process may take by its options.
        assert int(draining["EXTEND_TIMEOUT_USEC"]) > 30e6
        assert one.wait() == 0
        assert not [message for message in listener.waiting() if not is_alive(message)]


@pytest.mark.slow
def test_a_service_that_loads_asks_for_time(tmp_path: Path) -> None:
    options = ("--port", "0", "--torch.thread-count", "1", "--torch.dtype", "float32")
    words = ("-m", "llm_service", "--checkpoint", "models/demo/checkpoint", *options)
    with notify_socket(tmp_path) as listener, started(words, **watched(listener)) as one:
        listener.until(is_ready)
        kinds = [next(iter(message)) for message in listener.messages]
        assert kinds[:2] == ["STATUS", "EXTEND_TIMEOUT_USEC"]
        assert listener.messages[0]["STATUS"].startswith("loading /")
        assert kinds[-1] == "READY"
        listener.until(is_alive)
        one.send_signal(signal.SIGTERM)
        listener.until(lambda message: "STOPPING" in message)
        assert one.wait() == 0


@pytest.mark.slow
def test_an_abstract_address_and_no_watchdog() -> None:
    with notify_socket() as listener:
        with started(PROGRAMS["gateway"], NOTIFY_SOCKET=listener.address) as one:
            listener.until(is_ready)
            one.send_signal(signal.SIGTERM)
            listener.until(lambda message: "STOPPING" in message)
            assert one.wait() == 0
        assert not [message for message in listener.messages if is_alive(message)]


def test_the_variables_are_this_process_own(tmp_path: Path) -> None:
    code = (
        "import os, subprocess, sys; from protos.process.supervisor import supervisor;"
        "supervisor(); print(sorted(os.environ)); supervisor().tell('READY=1')"
    )
    with notify_socket(tmp_path) as listener:
        variables = {**os.environ, **watched(listener), "WATCHDOG_PID": "1"}
        done = subprocess.run(
            [sys.executable, "-c", code], env=variables, capture_output=True, text=True, check=True
        )
        assert listener.until(is_ready) == {"READY": "1"}
    assert not {"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"} & set(names_in(done.stdout))


def names_in(text: str) -> list[str]:
    """Returns a printed list of names."""
    return [word.strip("'[], \n") for word in text.split(",")]


async def test_a_process_whose_engine_is_dead_gives_no_sign_of_life(tmp_path: Path) -> None:
    with notify_socket(tmp_path) as listener:
        healthy = True
        async with Supervisor(listener.address, WATCHDOG_SECONDS).watching(lambda: healthy):
            await asyncio.sleep(WATCHDOG_SECONDS)
            assert listener.waiting()
            healthy = False
            await asyncio.sleep(3 * WATCHDOG_SECONDS)
            assert not listener.waiting()
            healthy = True
            await asyncio.sleep(WATCHDOG_SECONDS)
            assert listener.waiting()


async def test_a_blocked_event_loop_gives_no_sign_of_life(tmp_path: Path) -> None:
    with notify_socket(tmp_path) as listener:
        async with Supervisor(listener.address, WATCHDOG_SECONDS).watching(lambda: True):
            await asyncio.sleep(WATCHDOG_SECONDS)
            assert listener.waiting()
            time.sleep(3 * WATCHDOG_SECONDS)  # noqa: ASYNC251 - the fault
            assert not listener.waiting()
            await asyncio.sleep(WATCHDOG_SECONDS)
            assert listener.waiting()


async def test_nobody_is_told_where_nobody_asks() -> None:
    supervisor = Supervisor()
    supervisor.serves("127.0.0.1", 1)
    with supervisor.loading("a model"):
        pass
    async with supervisor.watching(lambda: True):
        supervisor.drains(1)


@pytest.mark.parametrize("microseconds", ["0", "soon", "-1"])
async def test_a_watchdog_without_a_time_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, microseconds: str
) -> None:
    with notify_socket(tmp_path) as listener:
        monkeypatch.setenv("NOTIFY_SOCKET", listener.address)
        monkeypatch.setenv("WATCHDOG_USEC", microseconds)
        one = supervisor.__wrapped__()  # what a process of its own would get
        async with one.watching(lambda: True):
            await asyncio.sleep(0.05)
        assert not listener.waiting()


def test_a_supervisor_that_is_gone_stops_nobody(tmp_path: Path) -> None:
    Supervisor(str(tmp_path / "gone")).serves("127.0.0.1", 1)


def test_a_start_without_progress_is_given_no_more_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("protos.process.supervisor.EXTENSION_POLL_SECONDS", 0.2)
    with notify_socket(tmp_path) as listener:
        with monkeypatch.context() as patch:
            # This process may have threads of other tests, which are not idle.
            patch.setattr("protos.process.supervisor.time.process_time", lambda: 1.0)
            with Supervisor(listener.address).loading("a model"):
                time.sleep(1.0)
        idle = listener.waiting()
        with Supervisor(listener.address).loading("a model"):
            end = time.process_time() + 0.5
            while time.process_time() < end:
                pass
        busy = listener.waiting()
    # One at the start, before anybody can know.
    assert sum("EXTEND_TIMEOUT_USEC" in message for message in idle) == 1
    assert sum("EXTEND_TIMEOUT_USEC" in message for message in busy) >= 2
