"""What Prometheus is told of the gateway: requests and their stages, images, tokens, refusals."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from gateway.access.metrics import CallerMetrics
from gateway.caller_limits import CALLER_LIMIT_ERRORS
from gateway.connections import Connections
from gateway.memory import Memory
from gateway.record import STAGES, RequestRecord
from gateway.traffic import Traffic
from protos.errors import BY_REASON, OverloadedError, UnavailableError
from protos.process.metrics import FIRST_TOKEN_BUCKETS

# Seconds. A health check takes a millisecond, an answer up to --request-seconds.
REQUEST_BUCKETS = (
    *(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320, 640),
)
# By their labels, a record's fields.
IMAGE_COUNTS = {
    "llm": "reused_image_count",
    "vision_cache": "cached_image_count",
    "encoded": "encoded_image_count",
}
TOKEN_COUNTS = {
    "prompt": "prompt_token_count",
    "image": "image_token_count",
    "cached": "cached_token_count",
    "output": "output_token_count",
}


class LoadCollector(Collector):
    """What the gateway holds, as it is when Prometheus asks."""

    def __init__(self, traffic: Traffic, connections: Connections, memory: Memory) -> None:
        self._traffic = traffic
        self._connections = connections
        self._memory = memory

    def collect(self) -> Iterator[Metric]:
        """Yields a gauge of each thing that has a limit."""
        for name, text, value in (
            ("requests", "Chat requests in flight.", self._traffic.request_count),
            ("connections", "Connections of clients.", len(self._connections)),
            (
                "held_bytes",
                "Bytes of bodies, image files and collected answers.",
                self._memory.held_byte_count,
            ),
        ):
            yield GaugeMetricFamily(f"internvl_gateway_{name}", text, value=value)


class Metrics:
    """The metrics of the gateway.

    Attributes:
        registry: what is scraped.
        usage_log_failures: writes to the usage log that failed.
        callers: those by the names of keys.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.callers = CallerMetrics(self.registry)
        self._requests = Histogram(
            "internvl_gateway_request_seconds",
            "From a request's arrival to the last byte of its answer; 499: the client went away.",
            ["route", "status"],
            buckets=REQUEST_BUCKETS,
            registry=self.registry,
        )
        stages = Histogram(
            "internvl_gateway_stage_seconds",
            "Where chat requests spend their time; first_token counts from the arrival.",
            ["stage"],
            buckets=FIRST_TOKEN_BUCKETS,
            registry=self.registry,
        )
        images = self._counter(
            "images",
            "Images that requests referred to: those that the LLM service still had, that the"
            " vision service still had, that were encoded.",
            "source",
        )
        tokens = self._counter(
            "tokens",
            "Tokens of complete answers: in their prompts, of these from images and from the KV"
            " cache, and in their outputs.",
            "kind",
        )
        self._refusals = self._counter(
            "refusals", "Requests that ended in an error, by its reason.", "reason"
        )
        self._attempts = self._counter(
            "attempts", "Offers of calls beyond their first, and why.", "service", "reason"
        )
        self.usage_log_failures = self._counter(
            "usage_log_failures", "Writes to the usage log that failed, and are tried again."
        )
        # Found once: that takes longer than to count. And made before the first event, which
        # Prometheus would not see as a rise otherwise.
        self._stages = {stage: stages.labels(stage) for stage in STAGES}
        self._images = {name: images.labels(source) for source, name in IMAGE_COUNTS.items()}
        self._tokens = {name: tokens.labels(kind) for kind, name in TOKEN_COUNTS.items()}
        for reason in (*BY_REASON, *(error.reason for error in CALLER_LIMIT_ERRORS)):
            self._refusals.labels(reason)
        for service in ("vision", "llm"):
            for error in (OverloadedError, UnavailableError):
                self._attempts.labels(service, error.reason)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"internvl_gateway_{name}", text, labels, registry=self.registry)

    def count_request(self, route: str, status: int, record: RequestRecord) -> None:
        """Counts a request that is over.

        Args:
            route: of the router's table, never a path that a client typed.
            status: as HTTP has it.
            record: what it cost.
        """
        self._requests.labels(route, status).observe(record.elapsed())
        if record.error:
            self._refusals.labels(record.error).inc()
        for stage, seconds in record.stage_seconds.items():
            self._stages[stage].observe(seconds)
        for name, counter in (*self._images.items(), *self._tokens.items()):
            if count := getattr(record, name):
                counter.inc(count)
        self.callers.count_request(status, record)

    def count_attempt(self, service: str, reason: str) -> None:
        """Counts a call that is sent once more: of "vision" or "llm", after this error's reason."""
        self._attempts.labels(service, reason).inc()
