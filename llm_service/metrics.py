"""What Prometheus is told of the service: the engine's load and steps, requests, tokens, waits."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client import Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from llm_service.engines.base import EngineLoad, HostCacheLoad, LLMEngine
from protos.process.metrics import FIRST_TOKEN_BUCKETS
from protos.process.service_metrics import ServiceMetrics

PREFIX = "internvl_llm"
# In seconds. Those of vLLM for the same thing, so that dashboards can show both.
OUTPUT_TOKEN_BUCKETS = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75),
    *(1, 2.5, 5, 7.5, 10, 20, 40, 80),
)
TOTAL_BUCKETS = (0.1, 0.25, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600)


class EngineCollector(Collector):
    """The engine's load, as it is when Prometheus asks."""

    def __init__(self, engine: LLMEngine) -> None:
        self._engine = engine

    def collect(self) -> Iterator[Metric]:
        """Yields gauges of the load, and counters of the steps and of preemptions."""
        load = self._engine.load()
        used_token_count = load.total_kv_token_count - load.free_kv_token_count
        for name, text, value in (
            ("waiting_sequences", "Sequences that wait for room.", load.waiting_sequence_count),
            ("running_sequences", "Sequences being generated.", load.running_sequence_count),
            (
                "kv_cache_utilization",
                "Share of the KV cache that sequences hold, 0 to 1.",
                used_token_count / max(1, load.total_kv_token_count),
            ),
        ):
            yield GaugeMetricFamily(f"{PREFIX}_{name}", text, value=value)
        cache = GaugeMetricFamily(
            f"{PREFIX}_kv_cache_tokens", "Tokens that fit into the KV cache.", labels=["part"]
        )
        cache.add_metric(["free"], load.free_kv_token_count)
        cache.add_metric(["used"], used_token_count)
        yield cache
        if load.host_cache is not None:
            yield from _host_cache(load.host_cache)
        yield from _counters(load)


def _host_cache(load: HostCacheLoad) -> Iterator[Metric]:
    prefix = f"{PREFIX}_host_cache"
    text = "Tokens that fit into host memory beside the KV cache."
    room = GaugeMetricFamily(f"{prefix}_tokens", text, labels=["part"])
    room.add_metric(["free"], load.total_token_count - load.used_token_count)
    room.add_metric(["used"], load.used_token_count)
    yield room
    for name, text, value in (
        ("loaded", "Tokens that went back to the KV cache.", load.loaded_token_count),
        ("evicted", "Tokens that made room for others.", load.evicted_token_count),
    ):
        yield CounterMetricFamily(f"{prefix}_{name}_tokens", text, value=value)


def _counters(load: EngineLoad) -> Iterator[Metric]:
    counts: list[tuple[str, str, float]] = [
        ("steps", "Steps of the engine.", load.steps.step_count),
        ("step_seconds", "Seconds that the engine's steps took.", load.steps.seconds),
        ("step_tokens", "Tokens that the engine's steps computed.", load.steps.token_count),
    ]
    if load.preemption_count is not None:  # an engine that does not tell has no such metric
        text = "Sequences that gave their room back, to be computed anew."
        counts.append(("preemptions", text, load.preemption_count))
    if load.drafts is not None:
        drafted, accepted = load.drafts.drafted_token_count, load.drafts.accepted_token_count
        counts += [
            ("drafted_tokens", "Drafts of tokens that the engine's steps verified.", drafted),
            ("accepted_draft_tokens", "Those of them that were right.", accepted),
        ]
    for name, text, value in counts:
        yield CounterMetricFamily(f"{PREFIX}_{name}", text, value=value)


class Metrics(ServiceMetrics):
    def __init__(self, engine: LLMEngine) -> None:
        super().__init__(PREFIX)
        self.registry.register(EngineCollector(engine))
        self._backlog = Gauge(
            f"{PREFIX}_backlog_seconds",
            "Seconds until a new request's turn, by the service's own estimate.",
            registry=self.registry,
        )
        self._tokens = Counter(
            f"{PREFIX}_tokens",
            "Tokens of complete answers: in their prompts, of these from images and from the KV"
            " cache, and in their outputs.",
            ["kind"],
            registry=self.registry,
        )
        embeddings = Counter(
            f"{PREFIX}_embeddings",
            "Embeddings that came: through memory shared with the vision service, or in chunks.",
            ["way"],
            registry=self.registry,
        )
        self._shared, self._chunks = map(embeddings.labels, ("shared", "chunks"))
        self._nonfinite = Counter(
            f"{PREFIX}_nonfinite_logits",
            "Requests that ended because the model's logits were NaN or infinite.",
            registry=self.registry,
        )
        self._first_token = self._seconds(
            "first_token", "From a request's first message to its first token.", FIRST_TOKEN_BUCKETS
        )
        self._output_token = self._seconds(
            "output_token",
            "Between two tokens of an answer, the mean of each; of several choices the longest's.",
            OUTPUT_TOKEN_BUCKETS,
        )
        self._total = self._seconds(
            "request", "From a request's first message to its last token.", TOTAL_BUCKETS
        )

    def _seconds(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"{PREFIX}_{name}_seconds", text, buckets=buckets, registry=self.registry)

    def watch_backlog(self, seconds: Callable[[], float]) -> None:
        """Asks this for the backlog's seconds whenever Prometheus asks."""
        self._backlog.set_function(seconds)

    def count_answer(
        self,
        tokens: dict[str, int],
        first_token_seconds: float,
        total_seconds: float,
        longest_output_count: int,
    ) -> None:
        """Counts a complete answer: its tokens by kind, and how long it took."""
        for kind, count in tokens.items():
            self._tokens.labels(kind).inc(count)
        self._first_token.observe(first_token_seconds)
        self._total.observe(total_seconds)
        if longest_output_count > 1:
            between = total_seconds - first_token_seconds
            self._output_token.observe(between / (longest_output_count - 1))

    def count_embeddings(self, shared_count: int, chunked_count: int) -> None:
        """Counts embeddings that have come, by their way."""
        self._shared.inc(shared_count)
        self._chunks.inc(chunked_count)

    def count_nonfinite(self) -> None:
        """Counts a request that has ended for logits that are not finite."""
        self._nonfinite.inc()
