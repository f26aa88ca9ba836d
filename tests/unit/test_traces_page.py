"""docs/traces.yaml hangs together, and docs/traces.md is what it says."""

from __future__ import annotations

from tests.traces.catalog import TYPES, catalog
from tests.traces.page import PAGE, page


def test_the_page_is_made_of_the_catalog() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run `python -m tests.traces.page`"


def test_each_name_is_described_and_each_description_used() -> None:
    spans, metrics = catalog().spans, catalog().metrics
    events = [event for span in spans for event in span.get("events", {}).values()]
    used = {name for entry in (*spans, *metrics, *events) for name in entry["attributes"]}
    assert used == set(catalog().attributes)
    tables = (catalog().attributes, catalog().resource)
    assert {entry["type"] for table in tables for entry in table.values()} <= set(TYPES)


def test_parents_are_spans() -> None:
    names = {span["name"] for span in catalog().spans}
    assert {parent for span in catalog().spans for parent in span["parents"]} <= {"", *names}
