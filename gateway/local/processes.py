"""The services as processes of this machine; each one's log is locked for as long as it lives."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import IO

from gateway.local.health import gateway_health, grpc_health
from gateway.local.ports import LOOPBACK, free_port
from protos.process.probe import HEALTHY, ProbeTLS

GATEWAY, ENGINES = "gateway", "engines"
TITLES = {"vision": "vision service", "llm": "LLM service", GATEWAY: GATEWAY}
ENDED = "ended"
POLL_SECONDS = 0.1
DRAIN_SECONDS = 30.0
# What a process may take beyond its drain before it is killed.
GRACE_SECONDS = 15.0
START_SECONDS = 1800.0
LOG_TAIL_LINE_COUNT = 20
# Threads that spin while they wait slow the other services down, up to 18 times. GNU's OpenMP has
# them spin some microseconds before they sleep: to wake one for each product takes longer.
WAITING = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "300"}


class StartError(RuntimeError):
    """A service cannot be started, or ended too early; the message says which and why."""


class Service:
    """A service in a process that somebody has started.

    The process holds a lock of its log through its standard error. So the lock says whether it
    lives, also after `kill -9`, and also when its id has been given to another process.

    Attributes:
        name: vision, llm, gateway or engines, as its log is named.
        log: the file that gets what it prints.
        port, host: where it listens.
        pid: its process, which leads a session of its own; 0 before it is started.
        tls: how it is asked by TLS; None where it listens in plain text.
    """

    def __init__(
        self,
        log: Path,
        port: int,
        pid: int = 0,
        host: str = LOOPBACK,
        tls: ProbeTLS | None = None,
    ) -> None:
        self.name = log.stem
        self.log = log
        self.port = port
        self.pid = pid
        self.host = host
        self.tls = tls

    @property
    def title(self) -> str:
        """Its name in a sentence."""
        return "engine host" if self.name == ENGINES else TITLES.get(self.name, self.name)

    @property
    def address(self) -> str:
        """Where it listens, as a client writes it."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def url(self) -> str:
        """Where the gateway listens, e.g. http://127.0.0.1:8000."""
        return f"{'https' if self.tls else 'http'}://{self.address}"

    def is_alive(self) -> bool:
        """Says whether its process lives, or is about to be started."""
        if not self.log.exists():
            return False
        with self.log.open("rb") as log:
            try:
                fcntl.flock(log, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False

    def health(self) -> str:
        """Returns HEALTHY, ENDED, or what keeps it from serving."""
        if not self.is_alive():
            return ENDED
        if self.name == GATEWAY:
            return gateway_health(self.url, self.tls)
        if self.name == ENGINES:
            return HEALTHY  # an engine that is dead ends it
        return grpc_health(self.address, self.tls)

    def terminate(self) -> None:
        """Asks the process to end once its calls have ended."""
        self._signal(os.kill, signal.SIGTERM)

    def wait_ended(self, drain_seconds: float = DRAIN_SECONDS) -> None:
        """Waits for the process's end; GRACE_SECONDS after its drain it is killed."""
        deadline = time.monotonic() + drain_seconds + GRACE_SECONDS
        while self.is_alive():
            if time.monotonic() > deadline:
                self.kill()
            time.sleep(POLL_SECONDS)

    def stop(self, drain_seconds: float = DRAIN_SECONDS) -> None:
        """Ends the process once its calls have ended."""
        self.terminate()
        self.wait_ended(drain_seconds)

    def kill(self) -> None:
        """Ends the process and those that it has started at once."""
        self._signal(os.killpg, signal.SIGKILL)

    def _signal(self, send: Callable[[int, int], None], signum: signal.Signals) -> None:
        if self.pid and self.is_alive():
            with suppress(ProcessLookupError):
                send(self.pid, signum)


def stop_services(services: Sequence[Service], drain_seconds: float) -> None:
    """Stops the gateway, the services behind it when its requests have ended, then their engines.

    An engine host listens to its services alone: one that is still there then has none.
    """
    engines = [service for service in services if service.name == ENGINES]
    gateways = [service for service in services if service.name == GATEWAY]
    others = [service for service in services if service not in (*engines, *gateways)]
    for group in (gateways, others):
        for service in group:
            service.terminate()
        for service in group:
            service.wait_ended(drain_seconds)
    for service in engines:
        service.kill()
        service.wait_ended()


class ServiceProcess(Service):
    """A service that this process starts.

    Attributes:
        module: what `python -m` runs.
        arguments: its command line, without the port.
        variables: of its environment, beside ours.
    """

    def __init__(
        self,
        module: str,
        arguments: Sequence[str],
        log: Path,
        port: int = 0,
        host: str = LOOPBACK,
        tls: ProbeTLS | None = None,
        variables: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        super().__init__(log, port or free_port(), host=host, tls=tls)
        self.module = module
        self.arguments = [*arguments]
        self.variables = variables
        self._process: subprocess.Popen[bytes] | None = None
        self._locked_log: IO[bytes] | None = None
        self._log_start = 0

    @property
    def words(self) -> list[str]:
        """Its command line."""
        return [*self.arguments, "--port", str(self.port)]

    def reserve(self) -> None:
        """Takes the lock of the log, which `start` hands on to the process.

        Raises:
            StartError: a process holds it.
        """
        log = self.log.open("ab")
        try:
            fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.close()
            raise StartError(f"the {self.title} runs already; its log is {self.log}") from None
        self._locked_log, self._log_start = log, log.tell()

    def release(self) -> None:
        """Gives up the lock that no process was started for."""
        if self._locked_log is not None:
            self._locked_log.close()
            self._locked_log = None

    def start(self) -> None:
        """Starts the process and returns at once.

        Raises:
            StartError: it runs already.
        """
        if self._locked_log is None:
            self.reserve()
        self._process = subprocess.Popen(  # noqa: S603 - our own modules
            [sys.executable, "-m", self.module, *self.words],
            stdin=subprocess.DEVNULL,
            stdout=self._locked_log,
            stderr=self._locked_log,
            env={**_environment(), **self.variables},
            # So that Ctrl-C does not end all three at once: the gateway's requests need the others.
            start_new_session=True,
        )
        self.pid = self._process.pid
        self.release()

    def wait_serving(
        self, seconds: float = START_SECONDS, beside: Sequence[ServiceProcess] = ()
    ) -> None:
        """Waits until the service takes requests.

        Args:
            seconds: the longest time.
            beside: others that start, none of which may end meanwhile.

        Raises:
            StartError: it took longer, or it or one of the others ended.
        """
        deadline = time.monotonic() + seconds
        while (health := self.health()) != HEALTHY:
            for service in (self, *beside):
                service.require_life()
            if time.monotonic() > deadline:
                raise StartError(
                    f"the {self.title} does not serve after {seconds:.0f} s ({health});"
                    f" its log is {self.log}"
                )
            time.sleep(POLL_SECONDS)

    def require_life(self) -> None:
        """Does nothing while the process lives.

        Raises:
            StartError: it ended.
        """
        if not self.is_alive():
            raise StartError(f"the {self.title} did not start: {self.last_words()}")

    def last_words(self) -> str:
        """Returns why the process ended: its own sentence, or the end of its log."""
        with self.log.open("rb") as log:
            log.seek(self._log_start)
            lines = log.read().decode(errors="replace").splitlines()[-LOG_TAIL_LINE_COUNT:]
        return _start_error(lines) or "\n".join([f"{self.log} ends with", *lines])

    def wait_ended(self, drain_seconds: float = DRAIN_SECONDS) -> None:
        """Waits for the process's end; GRACE_SECONDS after its drain it is killed."""
        super().wait_ended(drain_seconds)
        if self._process is not None:
            self._process.wait()

    def kill(self) -> None:
        """Ends the process and those that it has started; they have ended when this returns."""
        super().kill()
        if self._process is not None:
            self._process.wait()

    @property
    def returncode(self) -> int | None:
        """The exit status; None while it runs."""
        return self._process.poll() if self._process is not None else None


def _environment() -> dict[str, str]:
    """Returns a service's variables; whoever has chosen how threads wait has chosen all of it."""
    return {**({} if WAITING.keys() & os.environ.keys() else WAITING), **os.environ}


def _start_error(lines: Sequence[str]) -> str:
    """Returns the sentence of a service that says why it cannot start; empty if it says none."""
    try:
        event = json.loads(lines[-1])
        return str(event["error"]) if event["event"] == "start_failed" else ""
    except (IndexError, ValueError, KeyError, TypeError):
        return ""
