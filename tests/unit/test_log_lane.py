"""The lane of unconditional writes against a model of a server that answers, refuses, is cut off and comes back."""

import asyncio
from typing import Any, Literal

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from events.envelope import NewEvent
from events.errors import HublogError, LogUnavailable
from events.ids import EventId
from service.log.jetstream import lane as lane_module
from service.log.jetstream.answers import event_id
from service.log.jetstream.append import Writer
from service.log.jetstream.replies import Replies
from service.log.port import Stored

Step = tuple[Literal["submit", "take", "refuse", "answer", "cut", "heal", "turn"], int]


class Model:
    """A connection and the server behind it: first in, first out, and the same id stored once."""

    def __init__(self) -> None:
        self.connected = True
        self.observers: list[Any] = []
        self.on_reply: Any = None
        self.wire: list[tuple[str, str]] = []  # reply subject, event id: sent, not yet read by the server
        self.answers: list[tuple[str, bytes, bytes | None]] = []  # given, not yet read by the client
        self.log: list[str] = []

    def listen(self, _subject: str, callback: Any) -> None:
        self.on_reply = callback

    def observe(self, observer: Any) -> None:
        self.observers.append(observer)

    def send(self, _subject: str, reply: str, _payload: bytes, headers: bytes | None = None) -> None:
        if not self.connected:
            raise LogUnavailable("not connected")
        self.wire.append((reply, event_id(headers or b"")))

    def take(self, *, refuse: bool = False) -> None:
        if not self.wire:
            return
        reply, ident = self.wire.pop(0)
        if refuse:
            self.answers.append((reply, b"", b"NATS/1.0 503\r\n\r\n"))
            return
        duplicate = ident in self.log
        if not duplicate:
            self.log.append(ident)
        ack = {"stream": "EV_0", "seq": self.log.index(ident) + 1, "duplicate": duplicate}
        self.answers.append((reply, msgspec.json.encode(ack), None))

    def answer(self) -> None:
        if self.answers:
            reply, payload, headers = self.answers.pop(0)
            self.on_reply(reply.encode(), b"", payload, headers)

    def cut(self) -> None:
        if self.connected:
            self.connected = False
            self.wire.clear()
            self.answers.clear()
            for observer in self.observers:
                observer.lost()

    def heal(self) -> None:
        if not self.connected:
            self.connected = True
            for observer in self.observers:
                observer.regained()


steps = st.lists(
    st.tuples(
        st.sampled_from(["submit", "submit", "take", "take", "answer", "answer", "refuse", "cut", "heal", "turn"]),
        st.integers(1, 6),
    ),
    max_size=60,
)


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(script=steps)
async def test_every_write_ends_once_and_stored_ones_keep_their_order(
    script: list[Step], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lane_module, "BACKOFF_FIRST_S", 0.0)
    monkeypatch.setattr(lane_module, "IN_FLIGHT_MAX", 4)
    monkeypatch.setattr(lane_module, "HELD_MAX", 6)
    model = Model()
    replies = Replies(model)  # type: ignore[arg-type]
    writer = Writer(model, replies, None, 1)  # type: ignore[arg-type]
    outcomes: list[list[Stored | HublogError]] = []

    def submit() -> None:
        mine: list[Stored | HublogError] = []
        outcomes.append(mine)
        writer.submit("ev.0.h.all", NewEvent(EventId(str(len(outcomes))), b"{}"), mine.append)
        assert mine == []

    for what, count in script:
        for _ in range(count):
            match what:
                case "submit":
                    submit()
                case "take":
                    model.take()
                case "refuse":
                    model.take(refuse=True)
                case "answer":
                    model.answer()
                case "cut":
                    model.cut()
                case "heal":
                    model.heal()
                case "turn":
                    await asyncio.sleep(0)
    model.heal()
    async with asyncio.timeout(10):
        while not all(outcomes):
            model.take()
            model.answer()
            await asyncio.sleep(0)
    for _ in range(5):  # whatever still comes changes nothing
        model.take()
        model.answer()
        await asyncio.sleep(0)

    assert all(len(mine) == 1 for mine in outcomes)
    stored = {str(number): mine[0] for number, mine in enumerate(outcomes, 1) if isinstance(mine[0], Stored)}
    refused = {str(number) for number, mine in enumerate(outcomes, 1) if isinstance(mine[0], HublogError)}
    assert set(model.log) == stored.keys()
    assert not refused & set(model.log)
    assert all(model.log[outcome.sequence - 1] == ident for ident, outcome in stored.items())
    if not any(what == "refuse" for what, _ in script):
        assert model.log == sorted(model.log, key=int)
    lane = writer._lanes[0]
    assert (lane.bytes, lane.unclear, lane.flying, list(lane.held)) == (0, 0, {}, [])
    assert replies._waiting == {}
    await writer.close(0.0)
