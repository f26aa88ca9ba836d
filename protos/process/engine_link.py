"""The link between a service and the process that has its engine: frames on a Unix stream socket.

A frame is a head, the message in MessagePack, and descriptors of memory that both map, which go
beside it (SCM_RIGHTS). The end of the stream is the death of the other side; there is no other word
of it.

A service sends `Start`. The host answers with `Loading`, again and again while it loads, and then
with `Ready` or `Failed`. What follows are the part's own messages, both ways; each side decodes
what the other sends by types of its own, and nothing else can come out of a frame.

    service: link, process = open_link(place, "llm_service.engines.process.host")
             ready = await_ready(link, start, files)   blocks; HostFailedError
             link.listen(receive, end)                 in the event loop, from then on
             link.send(message)                        from any thread; never waits
"""

from __future__ import annotations

import asyncio
import os
import select
import socket
import struct
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec
import structlog

from protos.process.settings import MIB, EngineSettings

# Before a message: its bytes, and how many descriptors go with it.
HEAD = struct.Struct(">IB")
# Prompts of a million tokens, and all a large schema, have room in it.
MAX_MESSAGE_BYTE_COUNT = 64 * MIB
# What may wait for the other side to read. It reads all the time; if not, it is as good as dead.
MAX_BACKLOG_BYTE_COUNT = 256 * MIB
MAX_DESCRIPTOR_COUNT = 8
RECEIVE_BYTE_COUNT = MIB
SOCKET_BYTE_COUNT = 4 * MIB
HOST_PROGRAM = "protos.process.engine_host"
# What an own host may take to end once its link has: a little more than it takes by its own rules.
END_SECONDS = 10.0
logger = structlog.get_logger()


class Start(msgspec.Struct, tag="start", frozen=True):
    """What a service asks of a host, before all else.

    Attributes:
        part: the module that has the engine; one of those that the host was started with.
        settings: the service's, as JSON; for the part.
        log_level: of the host's log from then on, as the next two.
        log_format: likewise.
        log_lines_per_second: likewise.
    """

    part: str
    settings: bytes
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["json", "console"] = "json"
    log_lines_per_second: float = 100.0

    @classmethod
    def of(cls, part: str, settings: EngineSettings) -> Start:
        """Returns what asks for the engine of a service with these settings."""
        return cls(
            part,
            settings.model_dump_json(exclude_unset=True, exclude={"check"}).encode(),
            settings.log_level,
            settings.log_format,
            settings.log_lines_per_second,
        )


class Loading(msgspec.Struct, tag="loading", frozen=True):
    """A sign of life while the engine loads: the CPU time that the host has used so far."""

    cpu_seconds: float


class Ready(msgspec.Struct, tag="ready", frozen=True):
    """The engine is warm; what the service has to know of it, in MessagePack."""

    facts: bytes


class Failed(msgspec.Struct, tag="failed", frozen=True):
    """The engine cannot run there: one sentence."""

    sentence: str


class HostFailedError(Exception):
    """The host has no engine for this service: one sentence."""


@dataclass(frozen=True)
class Frame:
    """One message as it came, and the descriptors beside it, which are the receiver's."""

    data: bytes
    descriptors: tuple[int, ...] = ()


class EngineLink:
    """One end of a link. What cannot be sent at once is kept, and sent by the event loop.

    Any thread may send, so that an engine's own thread wakes nobody in its process. All else is for
    the thread that has the end: first it may `receive`, then it listens in an event loop.
    """

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BYTE_COUNT)
        self._connection = connection
        self._encoder = msgspec.msgpack.Encoder()
        self._sending = threading.Lock()
        self._backlog: deque[tuple[memoryview, Sequence[int]]] = deque()
        self._backlog_byte_count = 0
        self._has_ended = False
        self._received = bytearray()
        self._descriptors: deque[int] = deque()
        self._frames: deque[Frame] = deque()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._receive: Callable[[Frame], None] = lambda _: None
        self._end: Callable[[], None] = lambda: None

    def send(self, message: msgspec.Struct, descriptors: Sequence[int] = ()) -> None:
        """Sends a message; after the link's end it goes nowhere.

        The descriptors stay the caller's, and must be open until `send` returns.

        Raises:
            ValueError: the message is larger than any may be.
        """
        data = self._encoder.encode(message)
        if len(data) > MAX_MESSAGE_BYTE_COUNT:
            raise ValueError(f"a message of {len(data)} bytes")
        frame = memoryview(HEAD.pack(len(data), len(descriptors)) + data)
        with self._sending:
            if self._has_ended:
                return
            # They are the link's own while they wait.
            self._backlog.append((frame, [os.dup(number) for number in descriptors]))
            self._backlog_byte_count += len(frame)
            if len(self._backlog) == 1 and not self._flush():
                self._wait_for_room()
            elif self._backlog_byte_count > MAX_BACKLOG_BYTE_COUNT:
                self._shut_down()

    def receive(self, seconds: float | None = None) -> Frame | None:
        """Waits for the next frame; None at the link's end, or after so many seconds."""
        poll = select.poll()
        poll.register(self._connection, select.POLLIN)
        while not self._frames:
            ready = poll.poll(None if seconds is None else 1000 * seconds)
            if not ready or not self._read():
                return None
        return self._frames.popleft()

    def listen(self, receive: Callable[[Frame], None], end: Callable[[], None]) -> None:
        """Has the running loop call `receive` with each frame, and `end` once at the link's end."""
        self._receive, self._end = receive, end
        with self._sending:
            self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._connection, self._on_readable)
        self._loop.call_soon(self._hand_out)

    def is_open(self) -> bool:
        """Whether the other side is still there; for any thread, and without waiting."""
        poll = select.poll()
        poll.register(self._connection, 0)  # the end of the stream is told in any case
        return not poll.poll(0)

    def close(self) -> None:
        """Ends the link: the other side sees the end of the stream; nobody is called any more."""
        with self._sending:
            self._shut_down()
        self._stop_listening()
        self._connection.close()
        for number in self._descriptors:
            os.close(number)
        self._descriptors.clear()

    def _on_readable(self) -> None:
        is_open = self._read()
        self._hand_out()
        if not is_open and self._loop is not None:
            with self._sending:
                self._shut_down()
            self._stop_listening()
            self._end()

    def _hand_out(self) -> None:
        while self._frames and self._loop is not None:
            self._receive(self._frames.popleft())

    def _stop_listening(self) -> None:
        if self._loop is not None and not self._loop.is_closed():
            self._loop.remove_reader(self._connection)
            self._loop.remove_writer(self._connection)
        self._loop = None

    def _read(self) -> bool:
        """Takes what has arrived; False at the end of the stream, and where it is none of ours."""
        try:
            data, descriptors, _, _ = socket.recv_fds(
                self._connection, RECEIVE_BYTE_COUNT, MAX_DESCRIPTOR_COUNT
            )
        except BlockingIOError:
            return True
        except OSError:
            return False
        self._descriptors.extend(descriptors)
        self._received += data
        return bool(data) and self._cut()

    def _cut(self) -> bool:
        """Cuts whole frames off; False for one that nobody of ours sends."""
        begin = 0
        while len(self._received) - begin >= HEAD.size:
            byte_count, descriptor_count = HEAD.unpack_from(self._received, begin)
            if byte_count > MAX_MESSAGE_BYTE_COUNT:
                return False
            end = begin + HEAD.size + byte_count
            if end > len(self._received):
                break
            if descriptor_count > len(self._descriptors):
                return False
            numbers = tuple(self._descriptors.popleft() for _ in range(descriptor_count))
            self._frames.append(Frame(bytes(self._received[begin + HEAD.size : end]), numbers))
            begin = end
        del self._received[:begin]
        return True

    def _flush(self) -> bool:
        """Sends what waits as far as there is room; False where some of it still waits."""
        while self._backlog:
            data, descriptors = self._backlog[0]
            try:
                count = socket.send_fds(self._connection, [data], list(descriptors))
            except BlockingIOError:
                return False
            except OSError:  # the other side has gone, which the reading shows, too
                self._shut_down()
                return True
            for number in descriptors:
                os.close(number)
            self._backlog_byte_count -= count
            if count < len(data):
                self._backlog[0] = data[count:], ()
            else:
                self._backlog.popleft()
        return True

    def _wait_for_room(self) -> None:
        if self._loop is not None:
            with suppress(RuntimeError):  # a closed loop: nobody listens any more
                self._loop.call_soon_threadsafe(self._watch_room)
            return
        poll = select.poll()
        poll.register(self._connection, select.POLLOUT)
        while not self._flush():
            poll.poll()

    def _watch_room(self) -> None:
        if self._loop is not None:
            self._loop.add_writer(self._connection, self._on_room)

    def _on_room(self) -> None:
        with self._sending:
            is_done = self._flush()
        if is_done and self._loop is not None:
            self._loop.remove_writer(self._connection)

    def _shut_down(self) -> None:
        self._has_ended = True
        for _, descriptors in self._backlog:
            for number in descriptors:
                os.close(number)
        self._backlog.clear()
        with suppress(OSError):  # it is down already
            self._connection.shutdown(socket.SHUT_RDWR)


def start_own_host(
    part: str, program: str = HOST_PROGRAM
) -> tuple[EngineLink, subprocess.Popen[bytes]]:
    """Starts a process that hosts one part for this one; it ends when the link does.

    Args:
        part: the part's module.
        program: the module that is run, so that the process has a name; by default any part's.

    Raises:
        OSError: the system has no room for another process.
    """
    ours, theirs = socket.socketpair()
    places = os.pathsep.join(filter(None, sys.path))
    with theirs:
        arguments = ["--fd", str(theirs.fileno()), *([part] if program == HOST_PROGRAM else [])]
        try:
            process = subprocess.Popen(  # noqa: S603 - our own module
                [sys.executable, "-m", program, *arguments],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": places},
            )
        except OSError:
            ours.close()
            raise
    return EngineLink(ours), process


def open_link(
    place: Path | str, part: str, program: str = HOST_PROGRAM
) -> tuple[EngineLink, subprocess.Popen[bytes] | None]:
    """Returns a link to the host whose socket is at a path; else to a new one, and its process.

    Args:
        place: the option --engine-process.
        part: as of `start_own_host`.
        program: likewise.

    Raises:
        OSError: there is no such host, or no room for a process.
    """
    if isinstance(place, Path):
        return connect(str(place)), None
    return start_own_host(part, program)


def await_host_end(process: subprocess.Popen[bytes]) -> None:
    """Waits until an own host has ended, whose link has been closed; kills one that does not."""
    with suppress(subprocess.TimeoutExpired):
        process.wait(END_SECONDS)
    process.kill()
    logger.info("engine_process_ended", pid=process.pid, status=process.wait())


def connect(path: str) -> EngineLink:
    """Returns a link to a host that listens at a path.

    Raises:
        OSError: none does.
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.connect(path)
    except OSError:
        connection.close()
        raise
    return EngineLink(connection)


def await_ready(
    link: EngineLink,
    start: Start,
    descriptors: Sequence[int] = (),
    on_loading: Callable[[float], None] = lambda _: None,
) -> bytes:
    """Has an engine started, and returns the facts that its part tells; blocks meanwhile.

    Args:
        link: a new one.
        start: what is asked.
        descriptors: of memory that the part is to map.
        on_loading: is called with the CPU time that the host has used so far, every few seconds.

    Raises:
        HostFailedError: the engine cannot run there, or the host has ended.
    """
    decoder = msgspec.msgpack.Decoder(Loading | Ready | Failed)
    link.send(start, descriptors)
    while (frame := link.receive()) is not None:
        match decoder.decode(frame.data):
            case Loading(cpu_seconds):
                on_loading(cpu_seconds)
            case Ready(facts):
                return facts
            case Failed(sentence):
                raise HostFailedError(sentence)
    raise HostFailedError(f"the process of the engine ended while it was loading {start.part}")
