"""`python -m tests.traces.page`: makes docs/traces.md of docs/traces.yaml."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tests.traces.catalog import PATH, catalog

PAGE = PATH.with_suffix(".md")
HEAD = """\
# What traces hold

With `--otlp-endpoint` each of the three processes sends its spans to an OpenTelemetry collector,
and the gateway its histograms too; [operating.md](operating.md#traces) tells how. This page is made
of [traces.yaml](traces.yaml) by `python -m tests.traces.page`. Nothing else is exported: no text of
prompts and answers, no image, no URL, no path, no key.
"""


def page() -> str:
    """Returns the whole page."""
    return "\n".join(
        [
            HEAD,
            "## Spans\n",
            *_tree(),
            *(line for entry in catalog().spans for line in _span(entry)),
            "\n## Histograms\n",
            "In seconds, with the buckets that the conventions advise.\n",
            "| name | meaning | attributes |",
            "| --- | --- | --- |",
            *(
                f"| `{one['name']}` | {one['meaning']} | {_names(one['attributes'])} |"
                for one in catalog().metrics
            ),
            "\n## Attributes\n",
            "Those of `internvl.` are ours; the others are of OpenTelemetry's conventions.\n",
            *_table(catalog().attributes),
            "\n## Each process says of itself\n",
            *_table(catalog().resource),
            "",
        ]
    )


def _tree() -> Iterator[str]:
    yield "```"
    yield from _branch("", 0)
    yield "```"


def _branch(parent: str, depth: int) -> Iterator[str]:
    """Yields what stands below a span; where it may stand below several, below the first."""
    for entry in catalog().spans:
        if entry["parents"][0] == parent:
            yield f"{'  ' * depth + entry['name']:<52}{entry['process']}, {entry['kind']}"
            yield from _branch(entry["name"], depth + 1)


def _span(entry: Mapping[str, Any]) -> Iterator[str]:
    yield f"\n### `{entry['name']}`\n"
    yield entry["meaning"].strip()
    if entry["attributes"]:
        yield f"\nAttributes: {_names(entry['attributes'])}."
    for name, event in entry.get("events", {}).items():
        words = f" ({_names(event['attributes'])})" if event["attributes"] else ""
        yield f"\nEvent `{name}`{words}: {event['meaning']}."


def _names(names: list[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _table(entries: Mapping[str, Mapping[str, str]]) -> Iterator[str]:
    yield "| name | type | meaning |"
    yield "| --- | --- | --- |"
    for name, entry in entries.items():
        yield f"| `{name}` | {entry['type']} | {entry['meaning']} |"


if __name__ == "__main__":
    Path(PAGE).write_text(page(), encoding="utf-8")
