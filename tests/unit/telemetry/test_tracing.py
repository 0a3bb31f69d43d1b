"""Which commands are traced, and how a trace context is written."""

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from events import trace
from events.trace import Traced
from service.log.author import Author
from service.telemetry.tracing import ASKED_PER_S_MAX, CURRENT, PassedOn, Tracing, within

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Started:
    """Spans that only remember."""

    def __init__(self) -> None:
        self.begun: list[tuple[Any, ...]] = []

    def start(self, *begun: Any) -> PassedOn:
        self.begun.append(begun)
        return PassedOn(PARENT)


@pytest.mark.parametrize(
    ("text", "good"),
    [
        (PARENT, True),
        (PARENT.replace("-01", "-00"), True),
        ("cc" + PARENT[2:], True),  # of a later version
        ("ff" + PARENT[2:], False),
        (PARENT.upper(), False),
        (PARENT + "-x", False),
        (f"00-{'0' * 32}-b7ad6b7169203331-01", False),
        (f"00-0af7651916cd43dd8448eb211c80319c-{'0' * 16}-01", False),
        ("", False),
    ],
)
def test_what_a_trace_context_is(text: str, good: bool) -> None:
    assert trace.valid(text) == good


def test_it_is_found_in_headers_and_nowhere_else() -> None:
    block = f"NATS/1.0\r\nNats-Msg-Id: 1\r\n{trace.header(PARENT)}\r\n".encode()
    assert trace.of(block) == PARENT
    assert trace.of(block, block.find(b"traceparent")) is None
    assert trace.of(b"NATS/1.0\r\nNats-Msg-Id: 1\r\n\r\n") is None
    assert trace.of(b"NATS/1.0\r\ntraceparent: 00-short\r\n\r\n") is None
    assert trace.of(b"NATS/1.0\r\ntraceparent: \xff\r\n\r\n") is None


@given(st.binary())
def test_a_traced_payload_is_the_payload(payload: bytes) -> None:
    traced = Traced(payload, PARENT)
    assert traced == payload
    assert len(traced) == len(payload)
    assert traced.traceparent == PARENT


@pytest.mark.parametrize(("ratio", "least", "most"), [(0.0, 0, 0), (1.0, 20_000, 20_000), (0.1, 1_700, 2_300)])
def test_about_the_ratio_is_due(ratio: float, least: int, most: int) -> None:
    tracing = Tracing(Started(), ratio)
    assert least <= sum(tracing.due() for _ in range(20_000)) <= most


def test_nothing_is_due_where_nobody_collects() -> None:
    tracing = Tracing(None, 1.0)
    assert not any(tracing.due() for _ in range(1_000))
    assert not tracing.on
    assert tracing.child("append", "producer", PARENT, {}) is None


def test_which_commands_become_spans() -> None:
    started = Started()
    tracing = Tracing(started, 0.0)
    assert tracing.command("a", None, {}) is not None, "it was due"
    assert tracing.command("b", PARENT, {}) is not None
    assert tracing.command("c", PARENT.replace("-01", "-00"), {}) is None
    assert tracing.command("d", "no context", {}) is None
    assert [(name, parent) for name, _, parent, _ in started.begun] == [("a", None), ("b", PARENT)]


def test_clients_may_ask_for_so_many_a_second() -> None:
    now = [0.5]
    tracing = Tracing(Started(), clock=lambda: now[0])
    given_ = [tracing.command("a", PARENT, {}) for _ in range(ASKED_PER_S_MAX + 3)]
    assert [span is not None for span in given_] == [True] * ASKED_PER_S_MAX + [False] * 3
    assert tracing.refused == 3
    now[0] = 1.5
    assert tracing.command("a", PARENT, {}) is not None


async def test_what_is_written_within_a_span_belongs_to_it() -> None:
    from events.node import Draining

    author, event = Author(), Draining(node="n", incarnation="i")
    assert author.write(event, actor="a").traceparent is None
    span = Tracing().command("a", PARENT, {})
    assert span is not None
    with within(span):
        inside = author.write(event, actor="a").traceparent
        task = asyncio.ensure_future(asyncio.sleep(0, CURRENT.get()))
    assert (inside, await task) == (PARENT, PARENT)
    assert author.write(event, actor="a").traceparent is None
