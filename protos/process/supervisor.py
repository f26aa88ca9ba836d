"""What a process tells who has started it: systemd's protocol of notifications (sd_notify)."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import cache
from threading import Event, Thread

# A supervisor that does not read does not hold up the process.
SEND_SECONDS = 1.0
# What a process may take to end beyond its drain.
END_SECONDS = 15.0
# While a start makes progress, it is given so much more time, so often.
EXTENSION_SECONDS, EXTENSION_POLL_SECONDS = 60.0, 10.0
# What counts as progress: the share of one core that the process has used since.
LEAST_BUSY_SHARE = 0.01


class Supervisor:
    """Waits for word of this process; without an address nobody does, and nothing is sent."""

    def __init__(self, address: str = "", watchdog_seconds: float | None = None) -> None:
        """Makes it.

        Args:
            address: of its datagram socket; @ at the beginning stands for an abstract one.
            watchdog_seconds: after so long without a sign of life the process is killed.
        """
        self._address = address.replace("@", "\0", 1) if address.startswith("@") else address
        self._watchdog_seconds = watchdog_seconds
        self._others_seconds = 0.0

    def tell(self, *lines: str) -> None:
        """Sends lines such as READY=1; where nobody takes them, nothing is lost but they."""
        if not self._address:
            return
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.settimeout(SEND_SECONDS)
            sender.sendto("\n".join(lines).encode(), self._address)

    def serves(self, host: str, port: int) -> None:
        """Says that requests are taken."""
        self.tell("READY=1", f"STATUS=serving on {host}:{port}")

    def drains(self, seconds: float) -> None:
        """Says that the process ends once its requests have, which may take so many seconds."""
        microseconds = (seconds + END_SECONDS) * 1e6
        self.tell("STOPPING=1", "STATUS=draining", f"EXTEND_TIMEOUT_USEC={microseconds:.0f}")

    def rereads(self) -> None:
        """Says that files are read anew; READY=1 ends that."""
        self.tell("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    @contextmanager
    def loading(self, what: str) -> Iterator[None]:
        """Has it wait for the block's end, however long that takes, while it makes progress."""
        self.tell(f"STATUS=loading {what}")
        loaded = Event()
        thread = Thread(target=self._extend, args=(loaded,), name="start-extension", daemon=True)
        if self._address:
            thread.start()
        try:
            yield
        finally:
            loaded.set()

    def works(self, cpu_seconds: float) -> None:
        """Notes how much CPU time another process has used so far for this one's start."""
        self._others_seconds = cpu_seconds

    def _extend(self, loaded: Event) -> None:
        before_seconds = -EXTENSION_POLL_SECONDS
        while True:
            used_seconds = time.process_time() + self._others_seconds
            if used_seconds - before_seconds >= LEAST_BUSY_SHARE * EXTENSION_POLL_SECONDS:
                self.tell(f"EXTEND_TIMEOUT_USEC={EXTENSION_SECONDS * 1e6:.0f}")
            before_seconds = used_seconds
            if loaded.wait(EXTENSION_POLL_SECONDS):
                return

    @asynccontextmanager
    async def watching(self, is_alive: Callable[[], bool]) -> AsyncIterator[None]:
        """Gives signs of life from the event loop, twice as often as wanted, while `is_alive`."""
        if self._watchdog_seconds is None:
            yield
            return
        task = asyncio.create_task(self._live(is_alive, self._watchdog_seconds / 2))
        try:
            yield
        finally:
            task.cancel()

    async def _live(self, is_alive: Callable[[], bool], seconds: float) -> None:
        while True:
            if is_alive():
                self.tell("WATCHDOG=1")
            await asyncio.sleep(seconds)


@cache
def supervisor() -> Supervisor:
    """Returns this process's own; its variables are gone then, so that no child speaks for it."""
    address = os.environ.pop("NOTIFY_SOCKET", "")
    microseconds = os.environ.pop("WATCHDOG_USEC", "")
    is_meant = os.environ.pop("WATCHDOG_PID", "") in ("", str(os.getpid()))
    is_number = microseconds.isdigit() and int(microseconds) > 0  # 0 is no watchdog, to sd_notify
    return Supervisor(address, int(microseconds) / 1e6 if is_number and is_meant else None)
