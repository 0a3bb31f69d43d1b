"""The dashboard and the alerts of the chart: well-formed, of metrics and labels that exist, and each alert explained.

That the metrics exist on real processes is ``tests/acceptance/test_seeing.py``.
"""

import re
from pathlib import Path
from typing import Any

import pytest

from events.errors import every_error
from service.nodes.canary import JITTER, LEG_TIMEOUT_S, LEGS
from service.settings import defaults
from service.telemetry.catalogue import CATALOGUE
from tests.servers.promql import (
    SCRAPED_LABELS,
    alert_groups,
    alerts,
    dashboard,
    expressions,
    family,
    grouped_by,
    selectors,
)

TROUBLESHOOTING = Path(__file__).resolve().parents[3] / "docs" / "troubleshooting.md"
LABELS = {one.name: set(one.labels) for one in CATALOGUE}


@pytest.mark.parametrize("place", expressions())
def test_expressions_name_metrics_and_labels_of_the_table(place: str) -> None:
    for expression in expressions()[place]:
        named = set()
        for name, matched in selectors(expression):
            if name.startswith("process_"):
                continue
            assert family(name) in LABELS, f"{name} is no metric"
            assert matched.keys() <= LABELS[family(name)] | SCRAPED_LABELS, f"{name} has no such labels: {matched}"
            named |= LABELS[family(name)]
        assert grouped_by(expression) <= named | SCRAPED_LABELS


def test_codes_that_expressions_look_for_exist() -> None:
    for found in expressions().values():
        for expression in found:
            for name, matched in selectors(expression):
                if name == "hublog_appends_total" and "outcome" in matched:
                    assert set(matched["outcome"].split("|")) <= {"stored", "duplicate", *every_error()}


@pytest.mark.parametrize("rule", alerts(), ids=lambda rule: rule["alert"])
def test_every_alert_says_what_it_means_and_where_to_read_on(rule: dict[str, Any]) -> None:
    name = rule["alert"]
    assert re.fullmatch(r"Hublog[A-Za-z]+", name)
    assert rule.keys() <= {"alert", "expr", "for", "labels", "annotations"}
    assert rule["labels"]["severity"] in {"critical", "warning", "info"}
    assert re.fullmatch(r"\d+[smh]", rule.get("for", "0s"))
    notes = rule["annotations"]
    assert notes.keys() == {"summary", "description", "runbook_url"}
    assert notes["summary"].endswith(".")
    assert notes["description"].endswith(".")
    assert notes["runbook_url"] == f"docs/troubleshooting.md#{name.lower()}"
    used = set(re.findall(r"\$labels\.(\w+)", str(notes)))
    assert used <= grouped_by(rule["expr"]), "a label that the alert does not have"


def test_every_alert_has_a_place_in_the_docs_and_no_other() -> None:
    text = TROUBLESHOOTING.read_text(encoding="utf-8")
    headings = re.findall(r"^#+ (Hublog\w+)$", text, flags=re.MULTILINE)
    assert sorted(headings) == sorted(rule["alert"] for rule in alerts())


@pytest.mark.parametrize(
    ("alert", "role"),
    [
        ("HublogNoGateway", "hublog_connections"),
        ("HublogNobodyProjects", "hublog_projection_leading"),
        ("HublogNoApi", "hublog_api_request_duration_seconds_count"),
    ],
)
def test_what_one_install_has_does_not_hide_that_another_has_none(alert: str, role: str) -> None:
    (rule,) = (rule for rule in alerts() if rule["alert"] == alert)
    assert f"count by (namespace) (hublog_build_info) unless count by (namespace) ({role})" in rule["expr"]
    assert f"absent({role})" not in rule["expr"]


def test_canaries_of_one_short_outage_are_no_alert() -> None:
    """One failure stays in the window for as long as it is wide, and every partition's canary is one."""
    (rule,) = (rule for rule in alerts() if rule["alert"] == "HublogCanaryFailing")
    window = re.search(r"\[(\d+)m\]", rule["expr"])
    assert window is not None
    assert int(rule["for"].removesuffix("m")) > int(window[1])
    slowest_s = defaults()["canary_every_s"] * (1 + JITTER) + len(LEGS) * LEG_TIMEOUT_S
    assert int(window[1]) * 60 > slowest_s, "a canary that fails each time keeps the alert up"


def test_names_of_alerts_and_groups_are_unique() -> None:
    names = [rule["alert"] for rule in alerts()]
    groups = [group["name"] for group in alert_groups()]
    assert len(names) == len(set(names))
    assert len(groups) == len(set(groups))


def test_the_dashboard_is_laid_out_without_overlaps() -> None:
    panels = dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        grid = panel["gridPos"]
        assert grid["x"] + grid["w"] <= 24
        cells = {
            (x, y) for x in range(grid["x"], grid["x"] + grid["w"]) for y in range(grid["y"], grid["y"] + grid["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells


def test_the_dashboard_knows_its_variables() -> None:
    board = dashboard()
    variables = {one["name"] for one in board["templating"]["list"]}
    text = str(board)
    assert set(re.findall(r"\$\{?(\w+)", text)) - {"__rate_interval", "__all"} == variables
