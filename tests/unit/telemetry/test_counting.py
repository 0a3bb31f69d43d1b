"""What is counted on the way: writes and what became of them, and how late events come to sockets."""

from time import monotonic

import pytest

from service.delivery.lag import LAG_S, Lag
from service.log.author import timestamp
from service.log.tally import DUPLICATE, STORED, UNKNOWN, Tally
from service.process.measuring import together
from service.telemetry import Buckets


def test_writes_are_counted_by_what_they_ended_as_and_timed_where_they_were_stored() -> None:
    tally = Tally()
    for outcome in (STORED, STORED, DUPLICATE, "log_full"):
        tally.ended("unconditional", outcome, monotonic() - 0.2, doubted=False)
    tally.ended("conditional", "conflict", monotonic(), doubted=False)
    tally.refused("log_unavailable")
    outcomes = {(by["kind"], by["outcome"]): count for by, count in tally.outcomes() if count}
    assert outcomes == {
        ("conditional", "conflict"): 1,
        ("unconditional", "stored"): 2,
        ("unconditional", "duplicate"): 1,
        ("unconditional", "log_full"): 1,
        ("unconditional", "log_unavailable"): 1,
    }
    assert tally.conflicts() == 1
    took = {by["kind"]: buckets for by, buckets in tally.latencies()}
    assert sum(took["unconditional"].counts) == 2
    assert sum(took["conditional"].counts) == 0
    assert 0.4 <= took["unconditional"].total < 10


@pytest.mark.parametrize(
    ("outcome", "resolved"),
    [(STORED, "stored"), (DUPLICATE, "stored"), ("conflict", "not_stored"), (UNKNOWN, "unknown")],
)
def test_a_doubt_is_counted_once_it_is_resolved(outcome: str, resolved: str) -> None:
    tally = Tally()
    tally.ended("conditional", outcome, 0.0, doubted=True)
    assert {by["resolved"]: count for by, count in tally.doubts() if by["kind"] == "conditional"} == {
        "stored": int(resolved == "stored"),
        "not_stored": int(resolved == "not_stored"),
        "unknown": int(resolved == "unknown"),
    }
    assert sum(count for _, count in tally.doubts()) == 1


def test_lag_is_the_clock_less_what_is_written() -> None:
    now = 1_764_000_000.25
    lag = Lag(lambda: now)
    for late_s in (0.0004, 0.002, 0.3, 90.0, -1.0):  # the last by a clock that is ahead of ours
        lag.add(timestamp(int((now - late_s) * 1e6)))
    assert sum(lag.buckets.counts) == 5
    assert lag.buckets.total == pytest.approx(90.3024, abs=1e-4)
    assert lag.buckets.counts[0] == 1, "what comes before it was written came at once"


@pytest.mark.parametrize("at", ["", "yesterday", "2026-11-21", "2026-11-21T10:00:00.xZ"])
def test_what_is_no_time_is_not_measured(at: str) -> None:
    lag = Lag()
    lag.add(at)
    assert sum(lag.buckets.counts) == 0


def test_histograms_of_several_partitions_add_up() -> None:
    parts = [Lag(lambda: 10.0).buckets for _ in range(2)]
    parts[0].add(0.001)
    parts[1].add(1_000)
    whole = together(LAG_S, parts)
    assert sum(whole.counts) == 2
    assert whole.counts[-1] == 1
    assert whole.total == pytest.approx(1_000.001)
    assert together((1, 2), ()).counts == Buckets((1, 2)).counts
