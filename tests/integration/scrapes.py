"""What Prometheus would read: a real scrape over HTTP, parsed by its own client library."""

from __future__ import annotations

import asyncio
from urllib.request import urlopen

from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from protos.process.metrics import serving_metrics


async def scrape(registry: CollectorRegistry, prefix: str) -> dict[str, float]:
    """Returns the values of all samples, by name without the prefix and labels: "tokens/prompt"."""
    with serving_metrics(registry, "127.0.0.1", 0) as port:
        text = await asyncio.to_thread(_read, f"http://127.0.0.1:{port}/metrics")
    return {
        "/".join([sample.name.removeprefix(prefix), *sample.labels.values()]): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def _read(url: str) -> str:
    with urlopen(url, timeout=10) as response:
        return bytes(response.read()).decode()
