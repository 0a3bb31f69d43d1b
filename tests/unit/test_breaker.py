"""The circuit breaker, the retry budget and what is logged of them: pure, with a clock of the test's own."""

import asyncio

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from events.errors import LogUnavailable
from service.breaker import FAILURES_MAX, PAUSE_FIRST_S, PAUSE_MAX_S, PROBE_EVERY_S, Breaker, RetryBudget, keep
from service.voice import Voice


def opened() -> Breaker:
    breaker = Breaker("nats")
    for number in range(FAILURES_MAX):
        breaker.probing()
        breaker.failed(10.0 + number, "silence")
    return breaker


def test_one_failed_probe_does_not_open_it() -> None:
    breaker = Breaker("nats")
    assert not breaker.failed(10.0, "silence")
    assert breaker.admits()
    assert breaker.why(12.0) is None
    assert not breaker.succeeded(), "it never was open"
    assert not breaker.failed(20.0, "silence"), "the count begins anew"
    assert breaker.closed


def test_enough_in_a_row_open_it_and_callers_are_turned_away_and_counted() -> None:
    breaker = opened()
    assert (breaker.state, breaker.opened, breaker.refused) == ("open", 1, 0)
    assert not breaker.admits()
    assert breaker.refused == 1
    assert breaker.why(14.0) == "it has not answered for 4 s: silence"


def test_half_open_is_for_the_probe_alone_and_its_answer_closes() -> None:
    breaker = opened()
    breaker.probing()
    assert breaker.state == "half_open"
    assert not breaker.admits()
    assert breaker.succeeded()
    assert breaker.admits()
    assert breaker.why(14.0) is None
    assert breaker.pause_s(1.0) == PROBE_EVERY_S


def test_each_failed_probe_of_an_open_one_makes_the_pause_longer_up_to_a_limit() -> None:
    breaker = opened()
    pauses = [breaker.pause_s(1.0)]
    for _ in range(4):
        breaker.probing()
        assert not breaker.failed(20.0, "silence"), "it is open already"
        pauses.append(breaker.pause_s(1.0))
    assert pauses == [PAUSE_FIRST_S, 1.0, PAUSE_MAX_S, PAUSE_MAX_S, PAUSE_MAX_S]
    assert breaker.opened == 1
    assert breaker.pause_s(0.0) == PAUSE_MAX_S / 2


@given(st.lists(st.booleans(), max_size=60))
def test_it_is_open_exactly_after_enough_failures_in_a_row(answers: list[bool]) -> None:
    breaker, row, openings = Breaker("x"), 0, 0
    calls: list[int] = []
    breaker.on_open = lambda: calls.append(1)
    for number, answered in enumerate(answers):
        breaker.probing()
        row = 0 if answered else row + 1
        changed = breaker.succeeded() if answered else breaker.failed(float(number), "x")
        openings += changed and not answered
        assert breaker.closed is (row < FAILURES_MAX)
        assert breaker.admits() is breaker.closed
        assert (breaker.why(99.0) is None) is breaker.closed
    assert breaker.opened == openings == len(calls)


def test_the_budget_refuses_what_is_beyond_its_rate() -> None:
    budget = RetryBudget(10.0, 3.0, 0.0)
    assert [budget.take(0.0) for _ in range(4)] == [True, True, True, False]
    assert budget.take(0.1)
    assert not budget.take(0.1)
    assert [budget.take(60.0) for _ in range(4)] == [True, True, True, False], "no more is saved than the burst"
    assert budget.refused == 3


def test_a_change_is_said_once_a_minute_and_what_was_swallowed_is_counted() -> None:
    now_s = 0.0
    voice = Voice(structlog.get_logger().bind(circuit="nats"), clock=lambda: now_s)
    with structlog.testing.capture_logs() as lines:
        for second in (0.0, 10.0, 20.0):
            now_s = second
            voice.say("warning", "circuit.opened", problem="silence")
            voice.say("info", "circuit.closed")
        now_s = 60.0
        voice.say("warning", "circuit.opened", problem="silence")
    assert [(line["event"], line["log_level"], line.get("not_said")) for line in lines] == [
        ("circuit.opened", "warning", None),
        ("circuit.closed", "info", None),
        ("circuit.opened", "warning", 2),
    ]
    assert lines[2]["circuit"] == "nats"


async def test_the_prober_opens_and_closes_it_without_any_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.breaker.PROBE_EVERY_S", 0.001)
    monkeypatch.setattr("service.breaker.PAUSE_FIRST_S", 0.001)
    breaker = Breaker("nats")
    breaker._pause_s = 0.001
    was_open, silent, answered = asyncio.Event(), True, asyncio.Event()
    breaker.on_open = was_open.set
    under_way = 0

    async def probe() -> None:
        nonlocal under_way
        under_way += 1
        assert under_way == 1, "one at a time"
        await asyncio.sleep(0)
        under_way -= 1
        if silent:
            raise LogUnavailable("silence")
        if breaker.state == "half_open":
            asyncio.get_running_loop().call_soon(answered.set)

    keeping = asyncio.create_task(keep(breaker, probe))
    async with asyncio.timeout(5):
        await was_open.wait()
        assert not breaker.admits()
        silent = False
        await answered.wait()
    assert breaker.closed
    keeping.cancel()
    await asyncio.gather(keeping, return_exceptions=True)
