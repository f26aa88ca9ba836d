"""How many more tiles a second do more vision replicas encode?"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterator, Sequence
from itertools import count as numbers

from gateway.memory import HeldFile, Memory
from gateway.services.channel import VISION_SERVICE, open_channel
from gateway.services.messages import EmbeddingHeader
from gateway.services.routing import QueueLimits, Router
from gateway.services.vision import EncodeRequest, ModelInfo, VisionClient
from protos.identity import EmbeddingId, content_digest, recipe_digest
from protos.process.settings import GIB
from tests.benchmarks.crossover.arrangements import Deployment
from tests.benchmarks.crossover.workload import Photo, new_head, photos
from tests.benchmarks.replicas.stack import REPLICA_COUNT, SPILL_SECONDS
from tests.benchmarks.report import Report

TILE_COUNT = 13
# At a time for each replica: enough that none waits for its next file.
CALL_COUNT = 16
IMAGE_COUNT, QUICK_IMAGE_COUNT = 150, 50
CALL_SECONDS = 600.0
TITLE = "Vision replicas: tiles/s"
COMPARED = (
    f"New pictures of {TILE_COUNT} tiles, {CALL_COUNT} calls at a time for each replica, by the"
    " gateway's own client, which chooses the replica by the picture's digest. Tiles/s of H200s,"
    " whose times the engines sleep."
)


def scaling(deployment: Deployment, slowness: float, image_count: int) -> Report:
    """Returns tiles/s of 1, 2 and 4 replicas, which each encode so many images on average."""
    report = Report(TITLE, COMPARED, ("replicas", "tiles/s", "of one replica's"))
    rates: list[float] = []
    found = asyncio.run(_encode_by_each(deployment, slowness, image_count))
    for replica_count, ends in found.items():
        rates.append(TILE_COUNT * (len(ends) - 1) / (ends[-1] - ends[0]) * slowness)
        row = (f"{rates[-1]:.0f}", f"{rates[-1] / rates[0]:.2f}x")
        report.add(str(replica_count), row, {"ends": [end - ends[0] for end in ends]})
    return report


async def _encode_by_each(
    deployment: Deployment, slowness: float, image_count: int
) -> dict[int, list[float]]:
    """Returns when images were encoded, by the number of replicas."""
    found = {}
    for count in (1, 2, REPLICA_COUNT):
        print(f"{count} vision replicas ...", flush=True)
        addresses = [vision.address for vision in deployment.visions[:count]]
        found[count] = await _encode_all(addresses, image_count, SPILL_SECONDS * slowness)
    return found


async def _encode_all(
    addresses: Sequence[str], image_count: int, spill_seconds: float
) -> list[float]:
    """Returns when images were encoded: from all calls at work to all calls at work."""
    call_count = CALL_COUNT * len(addresses)
    images = _images(f"{len(addresses)} replicas")
    ends: list[float] = []
    enough = asyncio.Event()

    async def encode_on() -> None:
        while True:
            await _encode(client, info, next(images))
            ends.append(time.perf_counter())
            if len(ends) >= call_count + image_count * len(addresses):
                enough.set()

    limits = QueueLimits(spill_seconds, CALL_SECONDS)
    async with open_channel(f"ipv4:{','.join(addresses)}", VISION_SERVICE) as channel:
        client = VisionClient(channel, Router(limits, lambda _: None))
        info = await client.ask_model_info(_deadline())
        calls = [asyncio.create_task(encode_on()) for _ in range(call_count)]
        waiting = asyncio.create_task(enough.wait())
        await asyncio.wait([waiting, *calls], return_when=asyncio.FIRST_COMPLETED)
        for call in (waiting, *calls):
            call.cancel()
        for result in await asyncio.gather(*calls, return_exceptions=True):
            if isinstance(result, Exception):
                raise result
    return ends[call_count:]


def _deadline() -> float:
    return asyncio.get_running_loop().time() + CALL_SECONDS


async def _encode(client: VisionClient, info: ModelInfo, image: bytes) -> None:
    recipe = recipe_digest(info.recipe_sha256, info.default_tile_count)
    id_ = EmbeddingId(content_digest(image), recipe)
    with Memory(GIB).share() as share:
        share.take(len(image))
        request = EncodeRequest(HeldFile(image, share), None, info.recipe_sha256, id_, 0)
        async for piece in client.encode_image(request, str, _deadline()):
            if isinstance(piece, EmbeddingHeader):
                assert piece.tile_count == TILE_COUNT


def _images(seed: str) -> Iterator[bytes]:
    """Yields files that are all different."""
    some: list[Photo] = photos(TILE_COUNT, shrink=8)
    for number in numbers():
        chance = random.Random(f"{seed} {number}")
        yield new_head(chance) + chance.choice(some).rest
