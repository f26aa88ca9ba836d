"""A part of an engine host that gives back what it gets, or fails as its settings say."""

from __future__ import annotations

import os
import subprocess
import threading
import time

import msgspec

from protos.process.engine_link import EngineLink, Frame


class Facts(msgspec.Struct):
    """What its service is told: what stood in the memory that it was sent."""

    memory: bytes


class Echo(msgspec.Struct):
    """A text, there and back, and what stands in the file beside it."""

    text: str
    memory: bytes = b""


class NoEngineError(Exception):
    """There is no engine, as was asked for."""


START_ERRORS = (NoEngineError,)


class EchoEngine:
    """Gives back what it gets.

    To "die" it dies, "thread" is answered by another thread, and "child" by the id of a child which
    has all that is inheritable.
    """

    def __init__(self, facts: Facts) -> None:
        self.facts = facts
        self._is_healthy = True
        self._link: EngineLink | None = None

    def begin(self, link: EngineLink) -> None:
        self._link = link

    def receive(self, frame: Frame) -> None:
        assert self._link is not None
        echo = msgspec.msgpack.decode(frame.data, type=Echo)
        for number in frame.descriptors:
            echo.memory += os.pread(number, 100, 0)
            os.close(number)
        self._is_healthy = echo.text != "die"
        if echo.text == "child":
            child = subprocess.Popen(["sleep", "3600"], close_fds=False)
            echo = Echo(str(child.pid))
        if echo.text == "thread":
            threading.Thread(target=self._link.send, args=(echo,)).start()
        else:
            self._link.send(echo)

    def poll(self) -> bool:
        return self._is_healthy

    async def close(self) -> None:
        if self.facts.memory == b"hangs":
            time.sleep(3600)  # noqa: ASYNC251 - the whole process hangs


def start(settings: bytes, descriptors: tuple[int, ...]) -> EchoEngine:
    if settings == b"fail":
        raise NoEngineError("no engine today")
    if settings == b"bug":
        raise RuntimeError("a bug")
    if settings == b"load":
        time.sleep(3600)
    memory = b"".join(os.pread(number, 100, 0) for number in descriptors)
    for number in descriptors:
        os.close(number)
    return EchoEngine(Facts(memory or settings))
