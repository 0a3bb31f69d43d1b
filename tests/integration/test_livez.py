"""``/livez`` of a loop that stands still: answered from another thread, red, and with the line where it stands."""

import asyncio
import threading
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator

import pytest
import structlog

from events.errors import Misconfigured
from service import pulse as pulses
from service.admin import admin_app, serving_apart
from service.pulse import Pulse
from service.telemetry import Metrics

PATIENCE_S = 10.0


@pytest.fixture
async def pulse() -> AsyncIterator[Pulse]:
    made = Pulse()
    made.start()
    yield made
    made.stop()


def ask(port: int, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=PATIENCE_S) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as exc:
        return exc.code, exc.read().decode()


class Asking(threading.Thread):
    """Asks ``path`` until the answer is not 200 any more."""

    def __init__(self, port: int, path: str) -> None:
        super().__init__()
        self.port, self.path = port, path
        self.found = (0, "")

    def run(self) -> None:
        give_up_at = time.monotonic() + PATIENCE_S
        while time.monotonic() < give_up_at:
            self.found = ask(self.port, self.path)
            if self.found[0] != 200:
                return


def stand_still(until: threading.Thread) -> None:
    """What a loop must never do."""
    while until.is_alive():
        pass


async def test_it_turns_red_says_where_and_turns_green_again(pulse: Pulse, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pulses, "BLOCKED_AFTER_S", 0.3)
    monkeypatch.setattr("service.admin.HOME_TIMEOUT_S", 0.3)
    app = admin_app(Metrics("api"), {"nats": lambda: None}, pulse=pulse)
    async with serving_apart(app, "127.0.0.1", 0, setting="-", beside=pulse.watch) as port:
        for path in ("/livez", "/readyz", "/metrics"):
            assert (await asyncio.to_thread(ask, port, path))[0] == 200
        for path, says in (("/livez", "has not turned for"), ("/readyz", "it does not turn"), ("/metrics", "not turn")):
            asking = Asking(port, path)
            asking.start()
            stand_still(asking)
            status, body = asking.found
            assert (status, says in body) == (503, True), body
            if path != "/metrics":
                assert "test_livez.py" in body
                assert "(stand_still), called by " in body
            async with asyncio.timeout(PATIENCE_S):
                while (await asyncio.to_thread(ask, port, path))[0] != 200:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
    assert sum(pulse.lag.counts) > 0
    assert pulse.lag.total > 0.3, "the beats that were late are counted as such"


async def test_a_loop_that_stands_still_is_said_once_with_its_place(
    pulse: Pulse, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pulses, "SAID_AFTER_S", 0.2)
    monkeypatch.setattr(pulses, "LOOK_S", 0.02)
    with structlog.testing.capture_logs() as lines:
        async with serving_apart(admin_app(Metrics("api"), {}), "127.0.0.1", 0, setting="-", beside=pulse.watch):
            said = threading.Thread(target=_until, args=(lambda: bool(lines),))
            said.start()
            stand_still(said)
            async with asyncio.timeout(PATIENCE_S):
                while len(lines) < 2:  # noqa: ASYNC110  the other thread says it
                    await asyncio.sleep(0.01)
    assert [line["event"] for line in lines] == ["loop.blocked", "loop.turns_again"]
    assert "stand_still" in lines[0]["where"]
    assert lines[1]["blocked_s"] >= 0.2


def _until(condition: "object") -> None:
    give_up_at = time.monotonic() + PATIENCE_S
    assert callable(condition)
    while not condition() and time.monotonic() < give_up_at:
        time.sleep(0.005)


async def test_a_taken_port_is_told_where_it_was_asked_for(pulse: Pulse) -> None:
    app = admin_app(Metrics("api"), {})
    async with serving_apart(app, "127.0.0.1", 0, setting="-", beside=pulse.watch) as port:
        with pytest.raises(
            Misconfigured, match=rf"port {port} on 127.0.0.1 is taken; free it, or set HUBLOG_ADMIN_PORT"
        ):
            async with serving_apart(
                admin_app(Metrics("api"), {}), "127.0.0.1", port, setting="HUBLOG_ADMIN_PORT", beside=pulse.watch
            ):
                raise AssertionError("it must not serve")
