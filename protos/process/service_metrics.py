"""What Prometheus is told alike of both services: the calls that ended with an error."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter

from protos.errors import BY_REASON, ServiceError


class ServiceMetrics:
    """The metrics of one service; its own class adds those of its work.

    Attributes:
        registry: what is scraped.
    """

    def __init__(self, prefix: str) -> None:
        """Makes the metrics, whose names all begin with the prefix."""
        self.registry = CollectorRegistry()
        self._refusals = Counter(
            f"{prefix}_refusals",
            "Calls that ended with an error, by its reason in the contract.",
            ["reason"],
            registry=self.registry,
        )
        for reason in BY_REASON:  # a first one would not be seen as a rise otherwise
            self._refusals.labels(reason)

    def count_refusal(self, error: ServiceError) -> None:
        """Counts a call that ends with this error."""
        self._refusals.labels(error.reason).inc()
