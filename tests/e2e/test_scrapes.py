"""What the three processes really tell Prometheus, against what alerts and dashboard ask for."""

from __future__ import annotations

import json
from functools import partial
from typing import Any
from urllib.request import urlopen

import pytest
from openai import BadRequestError, OpenAI
from prometheus_client.parser import text_string_to_metric_families

from gateway.local.processes import ServiceProcess
from gateway.local.stack import Stack
from tests.monitoring import TARGET_LABELS, expressions, grouping_labels, selectors
from tests.served_model import CUSTOMERS_MODEL

PIXEL = "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"

QUESTION = "What is it?"
# The series of a scrape: by name, the values of each of their labels.
Scraped = dict[str, dict[str, set[str]]]


def read(page: str) -> Scraped:
    series: Scraped = {}
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            labels = series.setdefault(sample.name, {})
            for name, value in sample.labels.items():
                labels.setdefault(name, set()).add(value)
    return series


def metrics_port(service: ServiceProcess) -> int:
    """Returns the port that a service has logged."""
    (event,) = [
        event
        for event in map(json.loads, service.log.read_text().splitlines())
        if event["event"] == "serving_metrics"
    ]
    return int(event["port"])


@pytest.fixture(scope="module")
def scraped(served: Stack) -> Scraped:
    """The scrape of all three, after some requests."""
    content = [
        {"type": "image_url", "image_url": {"url": PIXEL}},
        {"type": "text", "text": QUESTION},
    ]
    messages: Any = [{"role": "user", "content": content}]
    with OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client:
        ask = partial(client.chat.completions.create, model=CUSTOMERS_MODEL, max_tokens=4)
        for _ in range(2):
            ask(messages=messages)
        with pytest.raises(BadRequestError):
            ask(messages=messages, top_p=7)
    series: Scraped = {}
    for service in served.services:
        with urlopen(f"http://127.0.0.1:{metrics_port(service)}/metrics", timeout=10) as response:
            series |= read(response.read().decode())
    return series


def test_alerts_and_dashboard_ask_for_what_there_is(scraped: Scraped) -> None:
    for place, expression in expressions():
        found = [one for one in selectors(expression) if one.name != "up"]
        known = set(TARGET_LABELS)
        for selector in found:
            assert selector.name in scraped, place
            series = scraped[selector.name]
            known |= series.keys()
            for label, _, values in selector.matchers:
                assert label in TARGET_LABELS or set(values) <= series[label], (place, label)
        assert grouping_labels(expression) <= known, place


def test_what_inference_gateways_read_is_there(scraped: Scraped) -> None:
    for name in ("waiting_sequences", "running_sequences", "kv_cache_utilization"):
        assert scraped[f"internvl_llm_{name}"] == {}  # one series: no label tells two apart


def test_a_name_begins_with_its_process_and_holds_nothing_that_a_user_wrote(
    scraped: Scraped,
) -> None:
    ours = {name: labels for name, labels in scraped.items() if name.startswith("internvl_")}
    assert {name.split("_")[1] for name in ours} == {"gateway", "vision", "llm"}
    assert QUESTION not in str(ours)
    assert PIXEL not in str(ours)
