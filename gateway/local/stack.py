"""Vision service, LLM service and gateway over one checkpoint, started and stopped together."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from gateway.local.engines import EngineHost
from gateway.local.gpus import has_gpu
from gateway.local.ports import LOOPBACK
from gateway.local.processes import (
    DRAIN_SECONDS,
    GATEWAY,
    POLL_SECONDS,
    START_SECONDS,
    ServiceProcess,
    StartError,
    stop_services,
)
from protos.process.probe import ProbeTLS


class Stack:
    """The three services, as a context manager.

    They start at once, except where there is a GPU: the KV cache takes most of the memory that is
    left of it, so the vision service takes its own first. Before them starts the engine host, if
    there is one.

    Attributes:
        vision, llm, gateway: the processes; their logs are in the folder.
        engines: the process that has the engines of both services; None: they have their own.
    """

    def __init__(
        self,
        checkpoint: Path,
        folder: Path,
        *,
        ports: tuple[int, int, int] = (0, 0, 0),
        host: str = LOOPBACK,
        service_arguments: Sequence[str] = (),
        vision_arguments: Sequence[str] = (),
        llm_arguments: Sequence[str] = (),
        gateway_arguments: Sequence[str] = (),
        probes: Mapping[str, ProbeTLS | None] = MappingProxyType({}),
        engines: EngineHost | None = None,
        variables: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """Starts nothing yet.

        Args:
            checkpoint: what is served.
            folder: gets the logs.
            ports: of vision, llm and gateway; 0 is a free one.
            host: the gateway's address for clients on this machine.
            service_arguments: options of the vision service and of the LLM service.
            vision_arguments: further options of the vision service.
            llm_arguments: further options of the LLM service.
            gateway_arguments: options of the gateway.
            probes: by its name, how a process that speaks TLS is asked for its health.
            engines: the host of both services' engines; None: each has its own.
            variables: of the environment of whoever has an engine, beside ours.
        """
        model = ["--checkpoint", str(checkpoint), *service_arguments]
        if engines is not None:
            model += ["--engine-process", str(engines.socket)]
        self.engines = engines
        self.vision = ServiceProcess(
            "vision_service",
            [*model, *vision_arguments],
            folder / "vision.log",
            ports[0],
            tls=probes.get("vision"),
            variables=variables,
        )
        self.llm = ServiceProcess(
            "llm_service",
            [*model, *llm_arguments],
            folder / "llm.log",
            ports[1],
            tls=probes.get("llm"),
            variables=variables,
        )
        self.gateway = ServiceProcess(
            "gateway",
            [
                *("--vision-address", self.vision.address),
                *("--llm-address", self.llm.address),
                *gateway_arguments,
            ],
            folder / "gateway.log",
            ports[2],
            host,
            probes.get(GATEWAY),
        )

    @property
    def services(self) -> list[ServiceProcess]:
        """All of them, in the order in which they start."""
        engines = [self.engines] if self.engines is not None else []
        return [*engines, self.vision, self.llm, self.gateway]

    @property
    def url(self) -> str:
        """The gateway's address, e.g. http://127.0.0.1:8000."""
        return self.gateway.url

    def __enter__(self) -> Stack:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(
        self,
        seconds: float = START_SECONDS,
        progress: Callable[[ServiceProcess], None] = lambda service: None,
    ) -> None:
        """Starts the three, and returns when they serve; if one does not, the others are stopped.

        Args:
            seconds: the longest time for one of them.
            progress: is called when one has been started, and when it is seen to serve, in the
                order of `services`.

        Raises:
            StartError: one of them ended, or took longer, or runs already.
        """
        self._reserve()
        try:
            for group in self._groups():
                for service in group:
                    service.start()
                    progress(service)
                for service in group:
                    service.wait_serving(seconds, beside=group)
                    progress(service)
        except BaseException:
            self.stop()
            raise

    def _groups(self) -> list[list[ServiceProcess]]:
        """Returns those that start at a time."""
        if has_gpu():
            return [[one] for one in self.services]
        services = [self.vision, self.llm, self.gateway]
        return [services] if self.engines is None else [[self.engines], services]

    def stop(self, drain_seconds: float = DRAIN_SECONDS) -> None:
        """Stops the three when their calls have ended; after a second Ctrl-C, at once."""
        for service in self.services:
            service.release()
        try:
            stop_services(self.services, drain_seconds)
        except KeyboardInterrupt:
            for service in self.services:
                service.kill()
            raise

    def _reserve(self) -> None:
        try:
            for service in self.services:
                service.reserve()
        except StartError:
            for service in self.services:
                service.release()
            raise

    def wait_for_an_end(self) -> ServiceProcess:
        """Returns the first of them that ends; an engine host that has ended well went with one."""
        while not (ended := [one for one in self.services if self._has_ended(one)]):
            time.sleep(POLL_SECONDS)
        return ended[0]

    def _has_ended(self, service: ServiceProcess) -> bool:
        status = service.returncode
        return status is not None and (status != 0 or service is not self.engines)
