"""What Prometheus is told of the service: backlog and cache, images, tiles, and their stages."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from protos.process.backlog import Backlog
from protos.process.service_metrics import ServiceMetrics
from vision_service.batcher import TileBatcher
from vision_service.cache import EmbeddingCache
from vision_service.embedding import Timings

PREFIX = "internvl_vision"
# Seconds: a small tile on a GPU takes a millisecond, a large picture on a CPU a minute.
STAGE_BUCKETS = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1, 2.5, 5, 10, 20, 40, 80),
)


class StateCollector(Collector):
    """What waits and what is held, as it is when Prometheus asks."""

    def __init__(self, batcher: TileBatcher, cache: EmbeddingCache, backlog: Backlog) -> None:
        self._batcher = batcher
        self._cache = cache
        self._backlog = backlog

    def collect(self) -> Iterator[Metric]:
        """Yields gauges of the backlog and of the cache, and counters of the engine's tiles."""
        for name, text, value in (
            (
                "waiting_tiles",
                "Tiles of accepted images that are not encoded yet; an image that is not decoded"
                " yet counts as a typical one.",
                self._backlog.waiting_count,
            ),
            (
                "backlog_seconds",
                "Seconds until a new image's turn, by the service's own estimate.",
                self._backlog.seconds(),
            ),
            ("cache_bytes", "Bytes of the embeddings in the cache.", self._cache.byte_count),
        ):
            yield GaugeMetricFamily(f"{PREFIX}_{name}", text, value=value)
        tiles = CounterMetricFamily(
            f"{PREFIX}_tiles",
            "Tiles that the engine encoded, and those that only filled its batches up.",
            labels=["kind"],
        )
        tiles.add_metric(["encoded"], self._batcher.encoded_tile_count)
        tiles.add_metric(["padding"], self._batcher.padding_tile_count)
        yield tiles


class Metrics(ServiceMetrics):
    def __init__(self) -> None:
        super().__init__(PREFIX)
        images = Counter(
            f"{PREFIX}_images",
            "Images that were answered: from the cache, or encoded.",
            ["source"],
            registry=self.registry,
        )
        stages = Histogram(
            f"{PREFIX}_stage_seconds",
            "Where the time of images that were encoded went.",
            ["stage"],
            buckets=STAGE_BUCKETS,
            registry=self.registry,
        )
        self._cached, self._encoded = map(images.labels, ("cache", "encoded"))
        self._preprocess, self._queue, self._forward = map(
            stages.labels, ("preprocess", "queue", "forward")
        )

    def watch(self, batcher: TileBatcher, cache: EmbeddingCache, backlog: Backlog) -> None:
        """Asks these for their numbers whenever Prometheus asks."""
        self.registry.register(StateCollector(batcher, cache, backlog))

    def count_image(self, *, cache_hit: bool) -> None:
        """Counts an image that was answered."""
        (self._cached if cache_hit else self._encoded).inc()

    def count_encode(self, timings: Timings) -> None:
        """Counts where the time of one encoding went, whoever waited for it."""
        self._preprocess.observe(timings.preprocess_seconds)
        self._queue.observe(timings.queue_seconds)
        self._forward.observe(timings.forward_seconds)
