"""The table of metrics, what may be registered, and how it is written."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from service.telemetry import Buckets, Metrics
from service.telemetry.catalogue import CATALOGUE, Declared, markdown_table

DOCS = Path(__file__).resolve().parents[3] / "docs" / "metrics.md"
BEGIN, END = "<!-- metrics: written by `hublog metrics --markdown` -->\n", "<!-- /metrics -->\n"
MADE_UP = (
    Declared("hublog_done_total", "counter", ("gateway",), "Done."),
    Declared("hublog_waits", "gauge", ("gateway",), "Waiting.", {"where": "`in`, `out`"}),
    Declared("hublog_took_seconds", "histogram", ("gateway",), "Took.", {"kind": "`a`"}),
    Declared("hublog_other", "gauge", ("api",), "Of another role."),
)


def samples(metrics: Metrics) -> dict[str, float]:
    def each() -> Iterator[tuple[str, float]]:
        for family in text_string_to_metric_families(metrics.exposition().decode()):
            for sample in family.samples:
                labels = ",".join(f"{name}={value}" for name, value in sample.labels.items())
                yield (f"{sample.name}{{{labels}}}" if labels else sample.name), sample.value

    return dict(each())


@pytest.fixture
def metrics() -> Metrics:
    return Metrics("gateway", catalogue=MADE_UP)


def test_the_docs_have_todays_metrics() -> None:
    text = DOCS.read_text(encoding="utf-8")
    assert text.count(BEGIN) == text.count(END) == 1
    assert text.partition(BEGIN)[2].partition(END)[0] == markdown_table()


@pytest.mark.parametrize("one", CATALOGUE, ids=lambda one: one.name)
def test_names_and_labels_are_those_of_prometheus(one: Declared) -> None:
    assert re.fullmatch(r"hublog_[a-z0-9]+(_[a-z0-9]+)*", one.name)
    assert one.name.endswith("_total") == (one.kind == "counter")
    assert not re.search(r"_(ms|us|millis|kb|mb|count|sum|bucket)\b", one.name)
    assert not one.labels.keys() & {"le", "session", "session_id", "group", "user", "hub", "invocation", "connection"}
    assert one.meaning.endswith(".")
    assert one.roles


def test_no_name_twice() -> None:
    names = [one.name for one in CATALOGUE]
    assert len(names) == len(set(names))


def test_numbers_are_read_when_asked_for(metrics: Metrics) -> None:
    done = [1]
    metrics.counter("hublog_done_total", lambda: done[0])
    metrics.gauge("hublog_waits", lambda: [({"where": "in"}, 2), ({"where": "out"}, 0.5)])
    assert samples(metrics)["hublog_done_total"] == 1
    done[0] = 7
    shown = samples(metrics)
    assert shown["hublog_done_total"] == 7
    assert (shown["hublog_waits{where=in}"], shown["hublog_waits{where=out}"]) == (2, 0.5)


def test_a_histogram_counts_a_value_in_every_bucket_that_it_fits(metrics: Metrics) -> None:
    took = Buckets((0.1, 1, 10))
    for value in (0.05, 0.1, 0.5, 10, 11):
        took.add(value)
    metrics.histogram("hublog_took_seconds", lambda: [({"kind": "a"}, took)])
    shown = samples(metrics)
    counts = [shown[f"hublog_took_seconds_bucket{{kind=a,le={bound}}}"] for bound in ("0.1", "1", "10", "+Inf")]
    assert counts == [2, 3, 4, 5]
    assert shown["hublog_took_seconds_count{kind=a}"] == 5
    assert shown["hublog_took_seconds_sum{kind=a}"] == pytest.approx(21.65)


def test_what_the_table_does_not_have_so_is_refused(metrics: Metrics) -> None:
    for name in ("hublog_unheard_of", "hublog_done_total", "hublog_other"):
        with pytest.raises(ValueError, match=name):
            metrics.gauge(name, lambda: 0)
    metrics.counter("hublog_done_total", lambda: 0)
    with pytest.raises(ValueError, match="twice"):
        metrics.counter("hublog_done_total", lambda: 0)
    assert metrics.missing == {"hublog_waits", "hublog_took_seconds"}


def test_a_number_that_cannot_be_read_does_not_hide_the_others(metrics: Metrics) -> None:
    def broken() -> float:
        raise RuntimeError("no idea")

    metrics.gauge("hublog_waits", broken)
    metrics.counter("hublog_done_total", lambda: 3)
    shown = samples(metrics)
    assert shown["hublog_done_total"] == 3
    assert not any(name.startswith("hublog_waits") for name in shown)
