"""Alert rules and dashboard: whole, explained, and the rules fire when they should."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from protos.errors import BY_REASON
from tests.monitoring import (
    ALERTS,
    CASES,
    ROOT,
    TARGET_LABELS,
    cases,
    dashboard,
    expressions,
    grouping_labels,
    rules,
    selectors,
    targets,
)

ALERT_NAMES = sorted({rule["alert"] for rule in rules()})
promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="needs promtool, of Debian's package prometheus"
)


def run_promtool(*arguments: str | Path) -> None:
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


@promtool
def test_prometheus_takes_the_rules() -> None:
    run_promtool("check", "rules", ALERTS)


@promtool
def test_each_case_of_the_rules_comes_out_as_it_should() -> None:
    run_promtool("test", "rules", *CASES)


def test_each_alert_has_a_case_in_which_it_fires_and_one_in_which_it_does_not() -> None:
    seen: dict[str, set[bool]] = {name: set() for name in ALERT_NAMES}
    for case in cases():
        seen[case["alertname"]].add("exp_alerts" in case)
    assert {name: fires for name, fires in seen.items() if fires != {True, False}} == {}


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule["alert"])
def test_an_alert_says_what_is_wrong_how_much_and_where_to_read_on(
    rule: dict[str, Any],
) -> None:
    assert set(rule) == {"alert", "expr", "for", "labels", "annotations"}
    assert rule["labels"]["severity"] in ("critical", "warning")
    notes = rule["annotations"]
    assert set(notes) == {"summary", "description", "runbook"}
    # What is not there has no value.
    assert ("$value" in notes["description"]) != (rule["alert"] == "InternVLNoReplica")
    page, _, anchor = notes["runbook"].partition("#")
    text = (ROOT / page).read_text()
    assert f"\n## {anchor.capitalize()}\n" in text
    assert f"\n| `{rule['alert']}` |" in text


def test_the_page_tells_of_no_alert_that_is_not_there() -> None:
    page = (ROOT / "docs" / "operating.md").read_text()
    assert sorted(re.findall(r"^\| `(InternVL\w+)` \|", page, re.MULTILINE)) == ALERT_NAMES


@pytest.mark.parametrize(("place", "expression"), expressions())
def test_an_expression_is_promql_about_our_metrics(place: str, expression: str) -> None:
    found = selectors(expression)
    assert found
    for selector in found:
        assert selector.name.startswith("internvl_") or selector.name == "up"
        reasons = {
            value for name, _, values in selector.matchers if name == "reason" for value in values
        }
        assert reasons <= BY_REASON.keys()


def test_what_is_not_promql_is_seen() -> None:
    with pytest.raises(ValueError, match="expected type matrix"):
        selectors("sum(rate(internvl_llm_steps_total))")


def test_the_dashboards_panels_have_places_and_words_of_their_own() -> None:
    panels = dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    places = Counter(
        (x, y)
        for panel in panels
        for grid in [panel["gridPos"]]
        for x in range(grid["x"], grid["x"] + grid["w"])
        for y in range(grid["y"], grid["y"] + grid["h"])
    )
    assert set(places.values()) == {1}
    assert max(x for x, _ in places) == 23
    rows = [panel["title"] for panel in panels if panel["type"] == "row"]
    assert rows == ["Affinity, and what scaling looks at", "Gateway", "Vision", "LLM"]
    charts = [panel for panel in panels if panel["type"] != "row"]
    assert all(panel["title"] and panel["description"] for panel in charts)


def test_the_dashboard_asks_the_data_source_and_the_jobs_that_are_chosen() -> None:
    variables = {variable["name"] for variable in dashboard()["templating"]["list"]}
    assert variables == {"datasource", "job"}
    for panel in dashboard()["panels"]:
        for target in panel.get("targets", ()):
            assert target["datasource"]["uid"] == panel["datasource"]["uid"] == "${datasource}"
    for _, expression, _ in targets():
        for selector in selectors(expression):
            assert ("job", True, ("$job",)) in selector.matchers


def test_a_legend_names_labels_that_its_series_have() -> None:
    for panel, expression, legend in targets():
        named = set(re.findall(r"{{(\w+)}}", legend))
        grouped = grouping_labels(expression)
        assert named <= (grouped or TARGET_LABELS), panel
