"""docs/traces.yaml, and whether spans are as it says."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from tests.traces.receiver import Attributes, Point, Span

PATH = Path(__file__).parents[2] / "docs" / "traces.yaml"
TYPES: Mapping[str, tuple[type, ...]] = {
    "string": (str,),
    "int": (int,),
    "double": (float,),
    "boolean": (bool,),
    "string[]": (list,),
}


@dataclass(frozen=True)
class Catalog:
    """The file as it is."""

    resource: Mapping[str, Any]
    attributes: Mapping[str, Any]
    spans: Sequence[Mapping[str, Any]]
    metrics: Sequence[Mapping[str, Any]]

    def entry(self, span: Span) -> Mapping[str, Any]:
        """Returns what the catalog says of a span."""
        for entry in self.spans:
            if _rendered(entry["name"], span) == span.name:
                return entry
        raise AssertionError(f"the catalog has no span {span.name!r}")


def _rendered(name: str, span: Span) -> str:
    return re.sub(r"{(.+?)}", lambda part: str(span.attributes.get(part[1])), name)


@cache
def catalog() -> Catalog:
    """Reads it."""
    return Catalog(**yaml.safe_load(PATH.read_text(encoding="utf-8")))


def check(spans: Iterable[Span], outer_ids: Iterable[str] = ()) -> None:
    """Fails unless all spans are as the catalog has them, and hang together.

    Args:
        spans: whole traces.
        outer_ids: spans of callers, which are not among them.
    """
    by_id = {span.span_id: span for span in spans}
    for span in by_id.values():
        entry = catalog().entry(span)
        assert span.kind == entry["kind"], span
        _check_attributes(span.attributes, entry["attributes"], span.name)
        assert set(span.resource) == set(catalog().resource), span.resource
        for event in span.events:
            assert event.name in entry.get("events", {}), (span.name, event)
            _check_attributes(event.attributes, entry["events"][event.name]["attributes"], span)
        _check_parent(span, by_id, entry, {"", *outer_ids})


def _check_attributes(attributes: Attributes, allowed: Sequence[str], where: object) -> None:
    for name, value in attributes.items():
        assert name in allowed, f"{where}: {name} is not in the catalog"
        types = TYPES[catalog().attributes[name]["type"]]
        assert type(value) in types, f"{where}: {name} is {value!r}"


def _check_parent(
    span: Span, by_id: Mapping[str, Span], entry: Mapping[str, Any], outer_ids: set[str]
) -> None:
    if span.parent_id in outer_ids:
        assert "" in entry["parents"], f"{span.name} has no parent"
        return
    parent = by_id[span.parent_id]
    assert parent.trace_id == span.trace_id
    assert catalog().entry(parent)["name"] in entry["parents"], (span.name, parent.name)


def check_points(points: Iterable[Point]) -> None:
    """Fails unless all histograms are as the catalog has them."""
    entries = {entry["name"]: entry for entry in catalog().metrics}
    for point in points:
        assert point.unit == "s"
        _check_attributes(point.attributes, entries[point.metric]["attributes"], point.metric)


def untold(spans: Iterable[Span], process: str) -> set[tuple[str, str]]:
    """Returns what the catalog says of a process's spans that these do not have: names of a span
    and of an attribute or event, or of nothing where there is no such span."""
    seen: set[tuple[str, str]] = set()
    for span in spans:
        entry = catalog().entry(span)
        if entry["process"] == process:
            name = entry["name"]
            events = [(event.name, *event.attributes) for event in span.events]
            seen |= {(name, ""), *((name, one) for one in span.attributes)}
            seen |= {(name, one) for words in events for one in words}
    return _all_of(process) - seen


def _all_of(process: str) -> set[tuple[str, str]]:
    found = set()
    for entry in catalog().spans:
        if entry["process"] == process:
            events = entry.get("events", {})
            words = [*entry["attributes"], *events]
            words += [word for event in events.values() for word in event["attributes"]]
            found |= {(entry["name"], word) for word in ("", *words)}
    return found
