"""The expressions of the dashboard and of the alerts, and what of them can be checked against real metrics."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser
import yaml

FILES = Path(__file__).resolve().parents[2] / "helm" / "files"
SUFFIXES = ("_bucket", "_sum", "_count")
# What Prometheus adds to every series, and histograms to theirs.
SCRAPED_LABELS = {"namespace", "instance", "job", "pod", "le"}


def dashboard() -> dict[str, Any]:
    return json.loads((FILES / "dashboard.json").read_text(encoding="utf-8"))  # type: ignore[no-any-return]


def alert_groups() -> list[dict[str, Any]]:
    return yaml.safe_load((FILES / "alerts.yaml").read_text(encoding="utf-8"))["groups"]  # type: ignore[no-any-return]


def alerts() -> list[dict[str, Any]]:
    return [rule for group in alert_groups() for rule in group["rules"]]


def expressions() -> dict[str, list[str]]:
    """By where they stand: ``panel <title>``, ``alert <name>``."""
    found = {
        f"panel {panel['title']}": [target["expr"] for target in panel["targets"]]
        for panel in dashboard()["panels"]
        if "targets" in panel
    }
    return found | {f"alert {rule['alert']}": [rule["expr"]] for rule in alerts()}


def selectors(expression: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Each metric that is selected, with the values that its labels are compared with. Raises: ValueError."""
    for node in _walk(promql_parser.parse(expression.replace("$__rate_interval", "5m"))):
        if isinstance(node, promql_parser.VectorSelector):
            assert node.name is not None
            yield node.name, {matcher.name: matcher.value for matcher in node.matchers.matchers}


def grouped_by(expression: str) -> set[str]:
    """The labels that aggregations keep."""
    nodes = _walk(promql_parser.parse(expression.replace("$__rate_interval", "5m")))
    kept = (node.modifier for node in nodes if isinstance(node, promql_parser.AggregateExpr))
    return {label for modifier in kept if modifier is not None for label in modifier.labels}


def family(name: str) -> str:
    """The metric that a series of it belongs to."""
    for suffix in SUFFIXES:
        if name.endswith(suffix):
            return name.removesuffix(suffix)
    return name


def _walk(node: Any) -> Iterator[Any]:
    yield node
    for name in ("expr", "lhs", "rhs", "vector_selector", "param"):
        below = getattr(node, name, None)
        if below is not None:
            yield from _walk(below)
    for below in getattr(node, "args", None) or ():
        yield from _walk(below)
