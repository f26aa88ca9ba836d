"""The process that holds engines for services: each a part, in one process, with one CUDA context.

    python -m protos.process.engine_host --socket PATH MODULE...   whoever connects names a MODULE
    python -m protos.process.engine_host --fd NUMBER MODULE        one service's own

Nobody remote chooses a module: those on the command line are all there are, and the socket is for
this user alone. The host ends when a service hangs up that has started a part, or when an engine
has died: its services are started anew together with it.

A part is a module with a function `start` and a tuple `START_ERRORS`, see Part; what `start` gives
is a HostedEngine.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol, cast

import msgspec
import structlog

from protos.process import logs
from protos.process.allocator import keep_freed_memory
from protos.process.engine_link import EngineLink, Failed, Frame, Loading, Ready, Start
from protos.process.garbage_collector import freeze_started
from protos.process.threads import give_lock_away_soon

logger = structlog.get_logger()

# How often a service hears that its engine is being loaded.
LOADING_SECONDS = 2.0
# How soon it is seen that an engine has died; its callers know at once.
HEALTH_SECONDS = 0.1
# What engines may take to end once their service has gone; then the process ends with them.
END_SECONDS = 5.0
# What is for the service; it drains, and then hangs up.
IGNORED_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


class HostedEngine(Protocol):
    """An engine that serves one link. All but `facts` is called in the host's event loop."""

    @property
    def facts(self) -> msgspec.Struct:
        """What the service has to know of it; it goes with Ready."""
        ...

    def begin(self, link: EngineLink) -> None:
        """Takes the link, on which it sends what it likes from then on; Ready has been sent."""
        ...

    def receive(self, frame: Frame) -> None:
        """Takes a message of the service's; the frame's descriptors are the engine's to close."""
        ...

    def poll(self) -> bool:
        """Returns whether the engine still works; called every HEALTH_SECONDS."""
        ...

    async def close(self) -> None:
        """Frees the engine; the service has gone."""
        ...


class Part(Protocol):
    """A module that has one kind of engine.

    Attributes:
        START_ERRORS: what `start` raises for reasons that are told in one sentence.
    """

    START_ERRORS: tuple[type[Exception], ...]

    def start(self, settings: bytes, descriptors: tuple[int, ...]) -> HostedEngine:
        """Loads an engine, warm, for settings in JSON; blocks, on a thread.

        The descriptors are the part's to close.
        """
        ...


class EngineHost:
    """The parts of a process, and the links of those that they serve.

    Engines are loaded one after the other, as each looks at how much memory is free.
    """

    def __init__(self, parts: Mapping[str, Part], *, is_own: bool) -> None:
        """Takes the parts, and whether they are for one service, with whose link all ends."""
        self._parts = parts
        self.is_own = is_own
        self._loading = asyncio.Lock()
        self._engines: list[HostedEngine] = []
        self._over = asyncio.Event()

    def attach(self, connection: socket.socket) -> None:
        """Takes a service's connection."""
        link = EngineLink(connection)
        session = _Session(self, link)
        link.listen(session.receive, session.end)

    async def run(self) -> int:
        """Waits until it is to end, and closes the engines; returns the exit status."""
        while not self._over.is_set() and all(engine.poll() for engine in self._engines):
            try:
                await asyncio.wait_for(self._over.wait(), HEALTH_SECONDS)
            except asyncio.TimeoutError:
                continue
        status = 0 if self._over.is_set() else 1
        # Engines that do not end by themselves, as one in the middle of its loading, end so.
        timer = threading.Timer(END_SECONDS if self._engines else 0.0, os._exit, (1,))
        timer.daemon = True
        timer.start()
        await asyncio.gather(*(engine.close() for engine in self._engines))
        return status

    def end(self) -> None:
        """Ends the process: a service has gone, or broken the rules."""
        self._over.set()

    async def start(
        self, link: EngineLink, start: Start, descriptors: tuple[int, ...]
    ) -> HostedEngine | None:
        """Loads a part's engine, and tells the service of it; None where it cannot run here."""
        if (part := self._parts.get(start.part)) is None:
            link.send(Failed(f"the engine host at this socket does not have {start.part}"))
            return None
        logs.configure(start.log_level, start.log_format, start.log_lines_per_second)
        errors: tuple[type[Exception], ...] = (*part.START_ERRORS, MemoryError)
        signs = asyncio.create_task(_tell_of_loading(link))
        try:
            async with self._loading:
                engine = await asyncio.to_thread(part.start, start.settings, descriptors)
        except errors as error:
            link.send(Failed(str(error) or "there is no memory left"))
            return None
        finally:
            signs.cancel()
        self._engines.append(engine)
        freeze_started()
        link.send(Ready(msgspec.msgpack.encode(engine.facts)))
        engine.begin(link)
        return engine


class _Session:
    """One link of a host: a Start, and then what its engine understands."""

    def __init__(self, host: EngineHost, link: EngineLink) -> None:
        self._host = host
        self._link = link
        self._is_served = host.is_own
        self._starting: asyncio.Task[HostedEngine | None] | None = None

    def receive(self, frame: Frame) -> None:
        """Takes a message; what nobody understands ends the host."""
        try:
            if self._starting is None:
                self._start(frame)
            elif (engine := self._starting.result()) is not None:
                engine.receive(frame)
        except (msgspec.MsgspecError, asyncio.InvalidStateError) as error:
            logger.error("engine_link_broken", error=str(error))
            self._host.end()

    def end(self) -> None:
        """Hung up; of who has asked for nothing, or was refused, that is nobody's loss."""
        self._link.close()
        if self._is_served:
            self._host.end()

    def _start(self, frame: Frame) -> None:
        start = msgspec.msgpack.decode(frame.data, type=Start)
        self._is_served = True
        self._starting = asyncio.create_task(self._host.start(self._link, start, frame.descriptors))
        self._starting.add_done_callback(self._started)

    def _started(self, starting: asyncio.Task[HostedEngine | None]) -> None:
        if starting.cancelled():
            return
        if (error := starting.exception()) is not None:
            logger.error("engine_start_broken", error=str(error), exc_info=error)
            self._host.end()
        elif starting.result() is None:
            self._is_served = self._host.is_own


async def _tell_of_loading(link: EngineLink) -> None:
    while True:
        link.send(Loading(time.process_time()))
        await asyncio.sleep(LOADING_SECONDS)


async def _host(parts: Mapping[str, Part], number: int | None, path: Path | None) -> int:
    host = EngineHost(parts, is_own=number is not None)
    if number is not None:
        # What an engine starts does not have it: the service would wait for the end of that, too.
        os.set_inheritable(number, False)
        host.attach(socket.socket(fileno=number))
        return await host.run()
    assert path is not None
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.setblocking(False)
        with _listening(listener, path):
            accepting = asyncio.create_task(_accept(host, listener))
            try:
                return await host.run()
            finally:
                accepting.cancel()


@contextmanager
def _listening(listener: socket.socket, path: Path) -> Iterator[None]:
    """Listens at a path, for this user alone; nothing is there any more at the end."""
    _remove_left(path)
    mask = os.umask(0o177)
    try:
        listener.bind(str(path))
    finally:
        os.umask(mask)
    listener.listen()
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def _remove_left(path: Path) -> None:
    """Removes the socket of a host that was killed: it is there, and nobody listens."""
    if not path.is_socket():
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        try:
            connection.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()


async def _accept(host: EngineHost, listener: socket.socket) -> None:
    while True:
        connection, _ = await asyncio.get_running_loop().sock_accept(listener)
        host.attach(connection)


def main(arguments: Sequence[str] | None = None) -> None:
    """Hosts engines until their services have gone; status 1 when an engine has died."""
    parser = argparse.ArgumentParser("engine-host", description=__doc__)
    place = parser.add_mutually_exclusive_group(required=True)
    place.add_argument("--socket", type=Path, help="path at which services connect")
    place.add_argument("--fd", type=int, help="open descriptor of the one service's connection")
    parser.add_argument("parts", nargs="+", metavar="MODULE", help="the engines that it may hold")
    options = parser.parse_args(arguments)
    for number in IGNORED_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    keep_freed_memory()
    give_lock_away_soon()
    parts = {name: cast(Part, importlib.import_module(name)) for name in options.parts}
    status = asyncio.run(_host(parts, options.fd, options.socket))
    sys.stderr.flush()
    # A thread may still be in the middle of a step, and nobody waits for it.
    os._exit(status)


if __name__ == "__main__":
    main()
