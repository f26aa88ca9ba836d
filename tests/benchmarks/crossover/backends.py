"""What the arrangements run on: the engines as they are, or engines that sleep."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Literal

from protos.process.settings import GIB
from tests.benchmarks.crossover.arrangements import Launch
from tests.benchmarks.crossover.simulated_services import Simulation

PACKAGE = __package__ or "tests.benchmarks.crossover"
VISIBLE = "CUDA_VISIBLE_DEVICES"
# Beside the weights of two 8B models and two vision towers on one H200.
KV_CACHE_BYTE_COUNT = 72 * GIB
TINY_KV_CACHE_BYTE_COUNT = GIB // 4
# So that no load of ours is refused: 64 requests of eight pictures of 13 tiles.
VISION_LIMITS = ("--max-queued-tile-count", "8192", "--max-preprocessing-image-count", "1024")
LLM_LIMITS = ("--max-table-byte-count", str(16 * GIB))
GATEWAY_LIMITS = ("--request-seconds", "3600")


@dataclass(frozen=True)
class EngineBackend:
    """The real engines.

    Attributes:
        checkpoint: what they serve.
        device: cuda; or cpu, which tries this program out without a GPU.
    """

    checkpoint: Path
    device: Literal["cuda", "cpu"]

    @property
    def model(self) -> str:
        """See Backend."""
        return self.checkpoint.name

    def vision(self, gpu: int) -> Launch:
        """See Backend."""
        return Launch("vision_service", [*self._model(), *VISION_LIMITS], self._environment(gpu))

    def llm(self, gpu: int, neighbour_count: int) -> Launch:
        """See Backend."""
        whole = KV_CACHE_BYTE_COUNT if self.device == "cuda" else TINY_KV_CACHE_BYTE_COUNT
        cache = ("--kv-cache-byte-count", str(whole // (1 + neighbour_count)))
        arguments = [*self._model(), *LLM_LIMITS, *cache]
        return Launch(f"{PACKAGE}.stamped_llm", arguments, self._environment(gpu))

    def gateway(self) -> Launch:
        """See Backend."""
        return Launch("gateway", GATEWAY_LIMITS, {VISIBLE: ""})

    def _model(self) -> list[str]:
        return ["--checkpoint", str(self.checkpoint), "--torch.device", self.device]

    def _environment(self, gpu: int) -> dict[str, str]:
        """Returns the variable by which a process sees one GPU, of those that we see."""
        if self.device == "cpu":
            return {}
        visible = os.environ.get(VISIBLE)
        return {VISIBLE: visible.split(",")[gpu] if visible else str(gpu)}


@dataclass(frozen=True)
class SimulatedBackend:
    """Engines that sleep, on GPUs that are a file.

    Attributes:
        checkpoint: a tiny one with the shape's tokenizer.
        shape: whose stage times.
        slowness: as in Simulation.
        gpus: the file.
        kv_token_count: as in Simulation.
    """

    checkpoint: Path
    shape: str
    slowness: float
    gpus: Path
    kv_token_count: int = 0
    slots: count[int] = field(default_factory=count)

    @property
    def model(self) -> str:
        """See Backend."""
        return self.checkpoint.name

    def vision(self, gpu: int) -> Launch:
        """See Backend."""
        return self._launch("vision", gpu, VISION_LIMITS)

    def llm(self, gpu: int, neighbour_count: int) -> Launch:
        """See Backend."""
        return self._launch("llm", gpu, LLM_LIMITS)

    def gateway(self) -> Launch:
        """See Backend."""
        return Launch("gateway", GATEWAY_LIMITS, {})

    def _launch(
        self, service: Literal["vision", "llm"], gpu: int, limits: tuple[str, ...]
    ) -> Launch:
        simulation = Simulation(
            service,
            self.shape,
            self.slowness,
            str(self.gpus),
            gpu,
            next(self.slots),
            self.kv_token_count,
        )
        arguments = [simulation.argument(), "--checkpoint", str(self.checkpoint), *limits]
        return Launch(f"{PACKAGE}.simulated_services", arguments, {})
