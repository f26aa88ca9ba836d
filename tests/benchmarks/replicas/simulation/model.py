"""Replicas of both services: a queue, a cache, and what a request costs there."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from protos.process.settings import GIB
from tests.benchmarks.crossover.stage_times import (
    PREPROCESS_TILE_SECONDS,
    Span,
    StageTimes,
    encode,
)
from tests.benchmarks.replicas.simulation.clock import Clock

TILE_ROW_COUNT = 256
VALUE_BYTE_COUNT = 2
# Of the 8B: 32 layers, 8 heads of 128 keys and 128 values.
KV_TOKEN_BYTE_COUNT = 32 * 8 * 2 * 128 * VALUE_BYTE_COUNT
# So many sequences share a step that reads the weights once.
DECODE_BATCH_COUNT = 16


@dataclass(frozen=True)
class Sizes:
    """What a replica has room for. Bytes."""

    kv_cache_byte_count: int = 72 * GIB
    vision_cache_byte_count: int = 4 * GIB


class Cache:
    """Names of what was used last, within a bound of their sizes' sum."""

    def __init__(self, max_size: int) -> None:
        self._max_size = max_size
        self._size = 0
        self._sizes: OrderedDict[str, int] = OrderedDict()

    def __contains__(self, name: str) -> bool:
        return name in self._sizes

    def size(self, name: str) -> int:
        """Returns what a name has here, 0 for nothing; it counts as used."""
        if name in self._sizes:
            self._sizes.move_to_end(name)
        return self._sizes.get(name, 0)

    def put(self, name: str, size: int) -> None:
        """Keeps a name, in the place of those used longest ago."""
        self._size += size - self._sizes.pop(name, 0)
        self._sizes[name] = size
        while self._size > self._max_size:
            _, oldest = self._sizes.popitem(last=False)
            self._size -= oldest


class Replica:
    """One process with one GPU, which does its work in the order of arrival.

    Attributes:
        cache: what it has computed before.
        busy_seconds: the work that it was given.
    """

    def __init__(self, clock: Clock, cache: Cache) -> None:
        self.cache = cache
        self.busy_seconds = 0.0
        self._clock = clock
        self._free_at = 0.0

    def backlog_seconds(self) -> float:
        """Returns how long a new request would wait for its turn."""
        return max(0.0, self._free_at - self._clock.now)

    def work(self, seconds: float) -> float:
        """Adds work to the queue, and returns the seconds until it is done."""
        self.busy_seconds += seconds
        self._free_at = max(self._free_at, self._clock.now) + seconds
        return self._free_at - self._clock.now


class VisionReplica(Replica):
    """Encodes images, each once as long as its cache holds it.

    Attributes:
        encoded_count: images that the GPU has encoded here.
    """

    def __init__(self, clock: Clock, times: StageTimes, sizes: Sizes) -> None:
        super().__init__(clock, Cache(sizes.vision_cache_byte_count))
        self.encoded_count = 0
        self._times = times
        self._ends: dict[str, float] = {}

    def knows(self, image: str) -> bool:
        """Whether it has the image's embedding, or makes it now."""
        return image in self.cache or self._ends.get(image, 0.0) > self._clock.now

    def encode(self, image: str, tile_count: int) -> float:
        """Returns the seconds until an image's embedding has reached the LLM service."""
        row_count = TILE_ROW_COUNT * tile_count
        way = self._times.relay(row_count) + self._times.travel(row_count)
        if self.cache.size(image):
            return way
        if not self.knows(image):
            done = PREPROCESS_TILE_SECONDS * tile_count + self.work(encode(tile_count))
            self._ends[image] = self._clock.now + done
            self.encoded_count += 1
        return self._ends[image] - self._clock.now + way

    def keep(self, image: str, tile_count: int) -> None:
        """Puts into the cache what has been encoded."""
        byte_count = VALUE_BYTE_COUNT * TILE_ROW_COUNT * tile_count * self._times.hidden_size
        self._ends.pop(image, None)
        self.cache.put(image, byte_count)


class LLMReplica(Replica):
    """Reads prompts, but for what its KV cache knows, and answers them."""

    def __init__(self, clock: Clock, times: StageTimes, sizes: Sizes) -> None:
        super().__init__(clock, Cache(sizes.kv_cache_byte_count // KV_TOKEN_BYTE_COUNT))
        self._times = times

    def read(self, cached_token_count: int, token_count: int) -> float:
        """Returns the seconds until a prompt has its first token."""
        return self.work(self._times.step([Span(cached_token_count, token_count)]))

    def write(self, context_token_count: int, token_count: int) -> float:
        """Returns the seconds until an answer's other tokens have been written."""
        span = Span(context_token_count, context_token_count + 1)
        step = self._times.step([span] * DECODE_BATCH_COUNT) / DECODE_BATCH_COUNT
        return self.work(step * token_count)
