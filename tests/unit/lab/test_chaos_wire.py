"""What one connection of the workload writes down, in the order in which it came."""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import msgspec
import pytest

from lab.chaos.history import History
from lab.chaos.wire import TARGET, Numbers, Wire
from lab.client import Answer, LoadClient, NotOpened

SESSION = {"sessionId": "s", "cursor": "e.0-7", "groups": [], "resumeToken": "next", "resumed": True}


class Service:
    """Answers a call in the same turn in which it is made, with whatever stands behind the answer."""

    def __init__(self, answer: Answer | None, behind: Callable[[], None] = lambda: None) -> None:
        self.ended: str | None = None
        self.on_end: Callable[[str], None] | None = None
        self._answer, self._behind = answer, behind

    def abort(self, _why: str) -> None:
        self.ended = "aborted"

    def call_with(self, on_answer: Callable[[Answer], None], _target: str, _arguments: bytes) -> None:
        if self._answer is None:
            raise NotOpened("gone")
        on_answer(self._answer)
        self._behind()


def answered(**fields: object) -> Answer:
    return Answer(3, "1", msgspec.Raw(msgspec.json.encode({**SESSION, **fields})))


@pytest.fixture
def history(tmp_path: Path) -> Iterator[History]:
    made = History(tmp_path)
    yield made
    made.close()


async def wire_to(history: History, answer: Answer | None, behind: bytes | None = None) -> Wire:
    wire = Wire(history, Numbers(), 1, resumable=True, cursor=None)

    def come() -> None:
        if behind is not None:
            wire.received(behind)

    await wire.open(cast("LoadClient", Service(answer, come)))
    return wire


def said(history: History) -> list[str]:
    history.close()
    return [msgspec.json.decode(line)["what"] for line in Path(history._file.name).read_bytes().splitlines()]


@pytest.mark.parametrize("resume", [None, ("s", "token", "e.0-3")], ids=["hub.session", "hub.resume"])
async def test_what_comes_with_the_answer_is_behind_it(history: History, resume: tuple[str, str, str] | None):
    wire = await wire_to(history, answered(), b'{"type":1,"target":"%s","arguments":[5,"e.0-9"]}' % TARGET.encode())
    greeting = await wire.greet(resume)
    assert greeting is not None
    assert greeting.session_id == "s"
    assert wire.cursor == "e.0-9", "a resume would begin behind what was received"
    assert said(history) == ([] if resume is None else ["resume"]) + ["greeted", "delivered"]


async def test_a_resume_goes_on_from_the_cursor_that_was_shown(history: History):
    wire = await wire_to(history, answered())
    await wire.greet(("s", "token", "e.0-3"))
    assert wire.cursor == "e.0-3"
    fresh = await wire_to(history, answered(resumed=False))
    await fresh.greet()
    assert fresh.cursor == "e.0-7"


@pytest.mark.parametrize("answer", [None, Answer(3, "1", error="token_stale: too old")], ids=["gone", "refused"])
async def test_without_an_answer_there_is_no_greeting(history: History, answer: Answer | None):
    wire = await wire_to(history, answer)
    assert await wire.greet(("s", "token", "e.0-3")) is None
    assert (wire.cursor, wire.token) == (None, None)
    assert said(history) == ["resume"]


async def test_an_end_before_the_answer_ends_the_waiting(history: History, monkeypatch: pytest.MonkeyPatch):
    wire = await wire_to(history, answered())
    late: list[Callable[[Answer], None]] = []
    monkeypatch.setattr(wire._client, "call_with", lambda on_answer, *_: late.append(on_answer))
    greeting = asyncio.ensure_future(wire.greet())
    await asyncio.sleep(0)
    wire.drop("cut")
    assert await greeting is None
    late[0](answered())
    assert said(history) == ["ended"]
