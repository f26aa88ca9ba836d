"""The arrangements of services on GPUs that are compared, and how each is started."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol
from unittest.mock import patch

from gateway.local.processes import DRAIN_SECONDS, ServiceProcess
from tests.benchmarks.serving.product import EVERY_LINE

START_SECONDS = 300.0


@dataclass(frozen=True)
class Route:
    """Where a gateway sends its work: indexes of vision and of LLM services."""

    visions: tuple[int, ...]
    llms: tuple[int, ...]


@dataclass(frozen=True)
class Arrangement:
    """Services on GPUs.

    Attributes:
        title: what it is, in a few words.
        vision_gpus, llm_gpus: the GPU of each service.
        routes: one for each gateway.
    """

    title: str
    vision_gpus: tuple[int, ...]
    llm_gpus: tuple[int, ...]
    routes: tuple[Route, ...]

    @property
    def gpu_count(self) -> int:
        """How many GPUs it takes."""
        return 1 + max(*self.vision_gpus, *self.llm_gpus)

    def folded(self, gpu_count: int) -> Arrangement:
        """Returns the same services on so many GPUs, fewer than they want or not."""
        return replace(
            self,
            vision_gpus=tuple(gpu % gpu_count for gpu in self.vision_gpus),
            llm_gpus=tuple(gpu % gpu_count for gpu in self.llm_gpus),
        )


ARRANGEMENTS: Mapping[str, Arrangement] = {
    "split": Arrangement("vision on GPU 0, LLM on GPU 1", (0,), (1,), (Route((0,), (0,)),)),
    "stacks": Arrangement(
        "a whole stack on each GPU", (0, 1), (0, 1), (Route((0,), (0,)), Route((1,), (1,)))
    ),
    "pooled": Arrangement(
        "as stacks, but both gateways use both vision services",
        (0, 1),
        (0, 1),
        (Route((0, 1), (0,)), Route((0, 1), (1,))),
    ),
}


@dataclass(frozen=True)
class Launch:
    """How a service is started: a module, its arguments, and variables of its environment."""

    module: str
    arguments: Sequence[str]
    environment: Mapping[str, str]


class Backend(Protocol):
    """What the services of an arrangement run on."""

    @property
    def model(self) -> str:
        """The name under which the model is served."""
        ...

    def vision(self, gpu: int) -> Launch:
        """Returns how to start a vision service on a GPU."""
        ...

    def llm(self, gpu: int, neighbour_count: int) -> Launch:
        """Returns how to start an LLM service on a GPU that so many others share."""
        ...

    def gateway(self) -> Launch:
        """Returns how to start a gateway; the addresses are added."""
        ...


class Deployment:
    """The processes of one arrangement.

    Attributes:
        model: the name under which they serve it.
        visions, llms, gateways: the processes, by index.
    """

    def __init__(self, arrangement: Arrangement, backend: Backend, folder: Path) -> None:
        """Starts nothing yet; the folder gets a folder of logs for each index."""
        llm_gpus = arrangement.llm_gpus
        self._environments: dict[ServiceProcess, Mapping[str, str]] = {}
        self._folder = folder
        self.model = backend.model
        self.visions = [
            self._process("vision", index, backend.vision(gpu))
            for index, gpu in enumerate(arrangement.vision_gpus)
        ]
        self.llms = [
            self._process("llm", index, backend.llm(gpu, llm_gpus.count(gpu) - 1))
            for index, gpu in enumerate(llm_gpus)
        ]
        self.gateways = [
            self._process("gateway", index, self._routed(backend.gateway(), route))
            for index, route in enumerate(arrangement.routes)
        ]

    @property
    def services(self) -> list[ServiceProcess]:
        """All of them."""
        return [*self.visions, *self.llms, *self.gateways]

    @property
    def urls(self) -> list[str]:
        """The gateways' addresses."""
        return [f"http://{gateway.address}" for gateway in self.gateways]

    @contextmanager
    def running(self) -> Iterator[None]:
        """Runs the processes.

        Raises:
            StartError: one of them did not start.
        """
        try:
            for group in ([*self.visions, *self.llms], self.gateways):
                for service in group:
                    with patch.dict(os.environ, EVERY_LINE | {**self._environments[service]}):
                        service.start()
                for service in group:
                    service.wait_serving(START_SECONDS)
            yield
        finally:
            self._stop()

    def _stop(self) -> None:
        for group in (self.gateways, [*self.visions, *self.llms]):
            for service in group:
                service.terminate()
            for service in group:
                service.wait_ended(DRAIN_SECONDS)

    def _process(self, name: str, index: int, launch: Launch) -> ServiceProcess:
        folder = self._folder / str(index)
        folder.mkdir(parents=True, exist_ok=True)
        process = ServiceProcess(launch.module, launch.arguments, folder / f"{name}.log")
        self._environments[process] = launch.environment
        return process

    def _routed(self, launch: Launch, route: Route) -> Launch:
        visions = ",".join(self.visions[index].address for index in route.visions)
        llms = ",".join(self.llms[index].address for index in route.llms)
        addresses = ("--vision-address", f"ipv4:{visions}", "--llm-address", f"ipv4:{llms}")
        return replace(launch, arguments=[*launch.arguments, *addresses])
