"""The alert rules and the dashboard that we ship, and what their expressions ask Prometheus for."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import promql_parser
import yaml

ROOT = Path(__file__).parents[1]
FILES = ROOT / "deploy" / "helm" / "internvl-serving" / "files"
ALERTS = FILES / "alerts.yaml"
DASHBOARD = FILES / "dashboard.json"
# For `promtool test rules`.
CASES = sorted((ROOT / "tests" / "data" / "prometheus").glob("*_test.yaml"))
# What Prometheus adds to the series of a target: our file of its configuration, and the operator.
TARGET_LABELS = frozenset({"job", "instance", "namespace", "pod"})


@dataclass(frozen=True)
class Selector:
    """A metric as an expression selects it: label, whether its value must be one of these."""

    name: str
    matchers: tuple[tuple[str, bool, tuple[str, ...]], ...]


def rules() -> list[dict[str, Any]]:
    """Returns all alert rules."""
    groups = yaml.safe_load(ALERTS.read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def cases() -> Iterator[dict[str, Any]]:
    """Yields what is said of each alert in each of the rules' cases."""
    for file in CASES:
        for test in yaml.safe_load(file.read_text())["tests"]:
            yield from test["alert_rule_test"]


def dashboard() -> dict[str, Any]:
    """Returns the dashboard."""
    loaded: dict[str, Any] = json.loads(DASHBOARD.read_text())
    return loaded


def targets() -> Iterator[tuple[str, str, str]]:
    """Yields panel, expression and legend of all that the dashboard asks for."""
    for panel in dashboard()["panels"]:
        for target in panel.get("targets", ()):
            # Grafana puts a time that suits the chart in its place.
            expression = target["expr"].replace("$__rate_interval", "5m")
            yield panel["title"], expression, target["legendFormat"]


def expressions() -> list[tuple[str, str]]:
    """Returns where each expression stands, and the expression."""
    alerts = [(rule["alert"], rule["expr"]) for rule in rules()]
    return alerts + [(panel, expression) for panel, expression, _ in targets()]


def selectors(expression: str) -> list[Selector]:
    """Returns the metrics that an expression is made of.

    Raises:
        ValueError: it is not PromQL.
    """
    found: list[Selector] = []

    def visit(node: promql_parser.Expr) -> None:
        if isinstance(node, promql_parser.VectorSelector):
            matchers = (
                (
                    matcher.name,
                    matcher.op in (promql_parser.MatchOp.Equal, promql_parser.MatchOp.Re),
                    tuple(matcher.value.split("|")),
                )
                for matcher in node.matchers.matchers
            )
            found.append(Selector(node.name or "", tuple(matchers)))

    promql_parser.walk(promql_parser.parse(expression), visit)
    return found


def grouping_labels(expression: str) -> set[str]:
    """Returns the labels that an expression names outside of its selectors."""
    found: set[str] = set()

    def visit(node: promql_parser.Expr) -> None:
        if isinstance(node, promql_parser.AggregateExpr) and node.modifier:
            found.update(node.modifier.labels)
        if isinstance(node, promql_parser.BinaryExpr) and node.modifier:
            matching = node.modifier.matching
            found.update(matching.labels if matching else ())
            found.update(node.modifier.group_labels or ())

    promql_parser.walk(promql_parser.parse(expression), visit)
    return found
