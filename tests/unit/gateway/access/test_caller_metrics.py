"""The counters of callers: names are bounded, and only known callers are counted."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry

from gateway.access.metrics import MAX_NAME_COUNT, CallerMetrics
from gateway.record import RequestRecord


def test_names_beyond_a_thousand_share_a_series() -> None:
    registry = CollectorRegistry()
    metrics = CallerMetrics(registry)
    for index in [*range(MAX_NAME_COUNT + 5), 0, MAX_NAME_COUNT]:
        record = RequestRecord(caller=f"key-{index}", image_count=2, output_token_count=3)
        metrics.count_request(200, record)

    def value(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(f"internvl_gateway_caller_{name}_total", labels)

    assert value("requests", caller="key-0", status="200") == 2
    assert value("requests", caller=f"key-{MAX_NAME_COUNT - 1}", status="200") == 1
    assert value("requests", caller=f"key-{MAX_NAME_COUNT}", status="200") is None
    assert value("requests", caller="other", status="200") == 6
    assert value("images", caller="other") == 12
    assert value("tokens", caller="other", kind="output") == 18
    assert value("tokens", caller="other", kind="prompt") is None


@pytest.mark.parametrize("caller", [None, "anybody"])
def test_who_has_no_name_is_not_counted(caller: str | None) -> None:
    registry = CollectorRegistry()
    CallerMetrics(registry).count_request(200, RequestRecord(caller=caller, image_count=1))
    names = {sample.name for family in registry.collect() for sample in family.samples}
    assert not [name for name in names if "_caller_" in name]
