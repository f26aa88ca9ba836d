"""The link between a service and its engine's process, with real processes at both ends."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

pytest.importorskip("msgspec")

import msgspec

from protos.process.engine_link import (
    HEAD,
    MAX_MESSAGE_BYTE_COUNT,
    EngineLink,
    Frame,
    HostFailedError,
    Start,
    await_ready,
    connect,
    start_own_host,
)
from tests.echo_part import Echo, Facts

PART = "tests.echo_part"
SECONDS = 30.0

Own = tuple[EngineLink, "subprocess.Popen[bytes]"]


@pytest.fixture
def own() -> Iterator[Own]:
    link, process = start_own_host(PART)
    yield link, process
    link.close()
    process.kill()
    process.wait()


@pytest.fixture
def pair() -> Iterator[tuple[EngineLink, EngineLink]]:
    ours, theirs = socket.socketpair()
    links = EngineLink(ours), EngineLink(theirs)
    yield links
    for link in links:
        link.close()


def memory_file(data: bytes) -> int:
    number = os.memfd_create("test")
    os.write(number, data)
    return number


def start_echo(link: EngineLink, settings: bytes = b"", *descriptors: int) -> Facts:
    return msgspec.msgpack.decode(await_ready(link, Start(PART, settings), descriptors), type=Facts)


def echo_of(frame: Frame | None) -> Echo:
    assert frame is not None
    return msgspec.msgpack.decode(frame.data, type=Echo)


def test_an_own_host_gives_answers_and_ends_with_its_link(own: Own) -> None:
    link, process = own
    assert start_echo(link, b"hi").memory == b"hi"
    link.send(Echo("a"))
    link.send(Echo("thread"))
    assert {echo_of(link.receive(SECONDS)).text for _ in range(2)} == {"a", "thread"}
    link.close()
    assert process.wait(SECONDS) == 0


def test_descriptors_come_with_the_message_that_they_were_sent_with(own: Own) -> None:
    link, _ = own
    numbers = [memory_file(data) for data in (b"arena", b"one", b"two")]
    assert start_echo(link, b"", numbers[0]).memory == b"arena"
    link.send(Echo("no file"))
    link.send(Echo("both"), numbers[1:])
    link.send(Echo("second"), numbers[2:])
    for number in numbers:
        os.close(number)
    echoes = [echo_of(link.receive(SECONDS)) for _ in range(3)]
    assert [echo.memory for echo in echoes] == [b"", b"onetwo", b"two"]


def test_signals_of_the_group_are_the_services_alone(own: Own) -> None:
    link, process = own
    start_echo(link)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        process.send_signal(number)
    link.send(Echo("still there"))
    assert echo_of(link.receive(SECONDS)).text == "still there"


def test_a_start_that_fails_is_told_in_its_sentence(own: Own) -> None:
    link, process = own
    with pytest.raises(HostFailedError, match="^no engine today$"):
        start_echo(link, b"fail")
    link.close()
    assert process.wait(SECONDS) is not None


def test_a_part_that_the_host_was_not_started_with_is_not_imported(own: Own) -> None:
    link, _ = own
    with pytest.raises(HostFailedError, match="does not have json"):
        await_ready(link, Start("json", b""))


@pytest.mark.parametrize("settings", [b"bug", b"load"])
def test_a_host_that_ends_while_it_loads_is_told_of(own: Own, settings: bytes) -> None:
    link, process = own
    on_loading: Callable[[float], None] = lambda _: (  # noqa: E731
        process.kill() if settings == b"load" else None
    )
    with pytest.raises(HostFailedError, match="ended while it was loading"):
        await_ready(link, Start(PART, settings), (), on_loading)


@pytest.mark.parametrize("settings", [b"load", b"hangs"])
def test_a_host_whose_service_hangs_up_ends_whatever_it_does(own: Own, settings: bytes) -> None:
    link, process = own
    if settings == b"load":
        link.send(Start(PART, settings))
        assert link.receive(SECONDS) is not None  # loading
    else:
        start_echo(link, settings)
    link.close()
    assert process.wait(SECONDS) == 1


@pytest.mark.parametrize("settings", [b"", b"hangs"])
def test_an_engine_that_dies_ends_its_host(own: Own, settings: bytes) -> None:
    link, process = own
    start_echo(link, settings)
    link.send(Echo("die"))
    assert echo_of(link.receive(SECONDS)).text == "die"
    assert link.receive(SECONDS) is None
    assert process.wait(SECONDS) == 1


def test_an_own_host_whose_service_has_died_before_it_asked_ends(own: Own) -> None:
    link, process = own
    link.close()
    assert process.wait(SECONDS) is not None


def test_what_an_engine_starts_does_not_hold_the_link_open(own: Own) -> None:
    link, process = own
    start_echo(link)
    link.send(Echo("child"))
    child = int(echo_of(link.receive(SECONDS)).text)
    try:
        process.kill()
        assert link.receive(SECONDS) is None
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_host_takes_no_message_that_its_part_does_not_understand(own: Own) -> None:
    link, process = own
    start_echo(link)
    link.send(Start(PART, b""))
    assert link.receive(SECONDS) is None
    assert process.wait(SECONDS) is not None


async def test_a_loop_is_called_with_each_frame_and_with_the_end(own: Own) -> None:
    link, process = own
    await asyncio.to_thread(start_echo, link)
    frames: asyncio.Queue[Frame | None] = asyncio.Queue()
    link.listen(frames.put_nowait, lambda: frames.put_nowait(None))
    for text in "abc":
        link.send(Echo(text))
    echoes = [echo_of(await asyncio.wait_for(frames.get(), SECONDS)) for _ in range(3)]
    assert "".join(echo.text for echo in echoes) == "abc"
    process.kill()
    assert await asyncio.wait_for(frames.get(), SECONDS) is None
    link.send(Echo("to nobody"))


async def test_what_the_other_side_does_not_read_yet_is_kept_in_order(
    pair: tuple[EngineLink, EngineLink],
) -> None:
    ours, theirs = pair
    ours.listen(lambda _: None, lambda: None)
    texts = [str(index) * 100_000 for index in range(200)]

    def send() -> None:
        for text in texts:
            ours.send(Echo(text))

    thread = threading.Thread(target=send)
    thread.start()
    await asyncio.to_thread(thread.join)  # it does not wait, though nobody has read
    for text in texts:
        assert echo_of(await asyncio.to_thread(theirs.receive, SECONDS)).text == text


def test_a_frame_may_come_in_pieces(pair: tuple[EngineLink, EngineLink]) -> None:
    ours, theirs = socket.socketpair()
    data = msgspec.msgpack.encode(Echo("slow"))
    with closing(ours), closing(EngineLink(theirs)) as link:
        for byte in HEAD.pack(len(data), 0) + data:
            assert link.receive(0) is None
            ours.send(bytes([byte]))
        assert echo_of(link.receive(SECONDS)).text == "slow"


@pytest.mark.parametrize("head", [(MAX_MESSAGE_BYTE_COUNT + 1, 0), (0, 1)])
def test_a_frame_of_nobodys_ends_the_link(head: tuple[int, int]) -> None:
    ours, theirs = socket.socketpair()
    with closing(ours), closing(EngineLink(theirs)) as link:
        ours.send(HEAD.pack(*head))
        assert link.receive(SECONDS) is None


def test_a_message_that_is_too_large_is_not_sent(pair: tuple[EngineLink, EngineLink]) -> None:
    with pytest.raises(ValueError, match="a message of"):
        pair[0].send(Echo("a" * (MAX_MESSAGE_BYTE_COUNT + 1)))


@contextmanager
def shared_host(path: Path) -> Iterator[subprocess.Popen[bytes]]:
    program = [sys.executable, "-m", "protos.process.engine_host", "--socket", str(path), PART]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(program, env=environment) as process:
        try:
            while not _is_heard(path):
                assert process.poll() is None
            yield process
        finally:
            process.kill()


def _is_heard(path: Path) -> bool:
    try:
        connect(str(path)).close()  # who asks for nothing ends nothing
    except OSError:
        return False
    return True


def test_a_shared_host_serves_who_connects_and_ends_with_the_first_of_them(tmp_path: Path) -> None:
    path = tmp_path / "host"
    with shared_host(path) as process:
        assert path.stat().st_mode & 0o777 == 0o600
        with closing(connect(str(path))) as refused, pytest.raises(HostFailedError):
            start_echo(refused, b"fail")
        with closing(connect(str(path))) as one, closing(connect(str(path))) as other:
            assert [start_echo(link, b"x").memory for link in (one, other)] == [b"x", b"x"]
            one.close()
            assert other.receive(SECONDS) is None
        assert process.wait(SECONDS) == 0
    assert not path.exists()


def test_a_host_takes_the_place_of_one_that_was_killed_and_of_no_other(tmp_path: Path) -> None:
    path = tmp_path / "host"
    with shared_host(path) as killed:
        killed.kill()
    assert path.is_socket()
    with shared_host(path):
        program = [sys.executable, "-m", "protos.process.engine_host", "--socket", str(path), PART]
        second = subprocess.run(program, capture_output=True, check=False)
        assert b"Address already in use" in second.stderr
        with closing(connect(str(path))) as link:
            assert start_echo(link, b"x").memory == b"x"
