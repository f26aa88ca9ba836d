"""Four replicas of each service, with engines that sleep, and the gateways that are compared."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import cycle
from pathlib import Path

from gateway.settings import Settings
from tests.benchmarks.crossover.arrangements import Arrangement, Deployment, Launch, Route
from tests.benchmarks.crossover.backends import SimulatedBackend
from tests.benchmarks.crossover.simulated_gpu import create_gpus
from tests.benchmarks.crossover.stage_times import SHAPES
from tests.benchmarks.replicas.simulation.model import KV_TOKEN_BYTE_COUNT, Sizes
from tests.benchmarks.shapes import open_shape
from tests.random_checkpoint import TEXT_WIDTH

SHAPE = "8B"
REPLICA_COUNT = 4
ALL = tuple(range(REPLICA_COUNT))
# In the order of the deployment's gateways. The last two each know one LLM replica alone: what one
# of them has asked, the other's replica has never seen.
HASHED, IN_TURN, FIRST_ALONE, SECOND_ALONE = range(4)
WAYS = ("hashed", "in-turn", "hashed", "hashed")
STACK = Arrangement(
    title="a GPU for each replica",
    vision_gpus=ALL,
    llm_gpus=tuple(REPLICA_COUNT + index for index in ALL),
    routes=(Route(ALL, ALL), Route(ALL, ALL), Route(ALL, (0,)), Route(ALL, (1,))),
)
# The gateway's own default, as simulated seconds.
SPILL_SECONDS: float = Settings.model_fields["spill_queue_seconds"].default
# Embeddings of the toy checkpoint, which is what is served, are so much smaller than the shape's.
WIDTH_RATIO = SHAPES[SHAPE].hidden_size // TEXT_WIDTH


@dataclass(frozen=True)
class ReplicaBackend(SimulatedBackend):
    """Replicas whose caches hold as much as real ones, and gateways of WAYS in turn."""

    ways: Iterator[str] = field(default_factory=lambda: cycle(WAYS))

    def vision(self, gpu: int) -> Launch:
        """See Backend."""
        launch = super().vision(gpu)
        byte_count = Sizes().vision_cache_byte_count // WIDTH_RATIO
        arguments = [*launch.arguments, "--cache-byte-count", str(byte_count)]
        return replace(launch, arguments=arguments)

    def gateway(self) -> Launch:
        """See Backend."""
        launch = super().gateway()
        return Launch(
            f"{__package__}.slowed_gateway",
            [
                *(next(self.ways), str(self.slowness), *launch.arguments),
                *("--spill-queue-seconds", str(SPILL_SECONDS * self.slowness)),
            ],
            launch.environment,
        )


@contextmanager
def running_stack(slowness: float) -> Iterator[Deployment]:
    """Runs all processes; a simulated second takes `slowness` seconds."""
    with open_shape(None, SHAPE, "cpu", True) as checkpoint, tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        backend = ReplicaBackend(
            checkpoint,
            SHAPE,
            slowness,
            create_gpus(folder / "gpus"),
            kv_token_count=Sizes().kv_cache_byte_count // KV_TOKEN_BYTE_COUNT,
        )
        deployment = Deployment(STACK, backend, folder)
        with deployment.running():
            yield deployment
