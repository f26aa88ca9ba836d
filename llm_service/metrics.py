"""What Prometheus is told of the service: the engine's load and steps, requests, tokens, waits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import structlog
from prometheus_client import CollectorRegistry, Counter, Histogram, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from llm_service.engines.base import LLMEngine

logger = structlog.get_logger()

# Seconds; a long prompt on a CPU is read in minutes.
FIRST_TOKEN_BUCKETS = (0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1, 2, 3, 5, 10, 20, 60, 120)
TOTAL_BUCKETS = (0.1, 0.25, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600)


class EngineCollector(Collector):
    """The engine's load, as it is when Prometheus asks."""

    def __init__(self, engine: LLMEngine) -> None:
        self._engine = engine

    def collect(self) -> Iterator[Metric]:
        """Yields gauges of the load and counters of the steps."""
        load = self._engine.load()
        sequences = GaugeMetricFamily(
            "internvl_llm_sequences", "Sequences in the engine.", labels=["state"]
        )
        sequences.add_metric(["running"], load.running_sequence_count)
        sequences.add_metric(["waiting"], load.waiting_sequence_count)
        cache = GaugeMetricFamily(
            "internvl_llm_kv_cache_tokens", "Tokens that fit into the KV cache.", labels=["part"]
        )
        cache.add_metric(["free"], load.free_kv_token_count)
        cache.add_metric(["used"], load.total_kv_token_count - load.free_kv_token_count)
        yield from (sequences, cache)
        for name, text, value in (
            ("steps", "Steps of the engine.", load.steps.step_count),
            ("step_seconds", "Seconds that the engine's steps took.", load.steps.seconds),
            ("step_tokens", "Tokens that the engine's steps computed.", load.steps.token_count),
        ):
            yield CounterMetricFamily(f"internvl_llm_{name}", text, value=value)


class Metrics:
    """The metrics of one service."""

    def __init__(self, engine: LLMEngine) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(EngineCollector(engine))
        self._tokens = Counter(
            "internvl_llm_tokens",
            "Tokens of complete answers: in their prompts, of these from images and from the KV"
            " cache, and in their outputs.",
            ["kind"],
            registry=self.registry,
        )
        self._nonfinite = Counter(
            "internvl_llm_nonfinite_logits",
            "Requests that ended because the model's logits were NaN or infinite.",
            registry=self.registry,
        )
        self._first_token = Histogram(
            "internvl_llm_first_token_seconds",
            "From a request's first message to its first token.",
            buckets=FIRST_TOKEN_BUCKETS,
            registry=self.registry,
        )
        self._total = Histogram(
            "internvl_llm_request_seconds",
            "From a request's first message to its last token.",
            buckets=TOTAL_BUCKETS,
            registry=self.registry,
        )

    def count_answer(
        self, tokens: dict[str, int], first_token_seconds: float, total_seconds: float
    ) -> None:
        """Counts a complete answer: its tokens by kind, and how long it took."""
        for kind, count in tokens.items():
            self._tokens.labels(kind).inc(count)
        self._first_token.observe(first_token_seconds)
        self._total.observe(total_seconds)

    def count_nonfinite(self) -> None:
        """Counts a request that has ended for logits that are not finite."""
        self._nonfinite.inc()


@contextmanager
def serving_metrics(metrics: Metrics, host: str, port: int | None) -> Iterator[int | None]:
    """Serves metrics over HTTP from a thread; without a port it serves none.

    Yields:
        The port that was bound.

    Raises:
        OSError: the address cannot be bound.
    """
    if port is None:
        yield None
        return
    try:
        server, thread = start_http_server(port, host, metrics.registry)
    except OSError as error:
        raise OSError(f"cannot serve metrics on {host}:{port}: {error.strerror}") from error
    logger.info("serving_metrics", host=host, port=server.server_port)
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
