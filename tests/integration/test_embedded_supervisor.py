"""The supervisor over processes that are easy to kill: order, restarts, failures, and nothing left behind."""

import asyncio
import errno
import io
import os
import signal
from collections.abc import Sequence
from pathlib import Path

import pytest
from rich.console import Console

from events.errors import Misconfigured
from service.up.board import Board, Entry, shown
from service.up.child import Child, spawn
from service.up.supervisor import Supervisor
from service.up.units import Unit
from tests.servers.processes import gone, until


class Sleeper(Unit):
    """A process that does nothing. Its ``failures`` next starts fail; what happens to it is told to ``story``."""

    role = "gateway"

    def __init__(self, index: int, folder: Path, story: list[str]) -> None:
        self.index = index
        self.failures = 0
        self._folder = folder
        self._story = story
        self._child: Child | None = None

    @property
    def child(self) -> Child | None:
        return self._child

    @property
    def entry(self) -> Entry:
        return Entry("gateway", self.index, self._child.pid if self._child else None, None, None)

    async def start(self) -> None:
        if self.failures:
            self.failures -= 1
            raise Misconfigured("not yet")
        log = self._folder / f"{self.index}.log"
        self._child = spawn("sleeper", ["/bin/sleep", "600"], log_file=log, death_signal=signal.SIGKILL)
        self._story.append(f"start {self.index}")

    async def stop(self) -> None:
        if self._child is not None:
            await self._child.stop(((signal.SIGTERM, 10.0),))
            self._story.append(f"stop {self.index}")


class FullDisk(io.StringIO):
    """Where the terminal's output was sent to."""

    def write(self, _text: str, /) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture
def story() -> list[str]:
    return []


@pytest.fixture
def sleepers(tmp_path: Path, story: list[str]) -> list[Sleeper]:
    return [Sleeper(index, tmp_path, story) for index in range(3)]


def pids(units: Sequence[Unit]) -> list[int]:
    return [unit.child.pid for unit in units if unit.child is not None]


async def test_what_a_process_wrote_is_not_what_an_earlier_one_did(tmp_path: Path) -> None:
    said = []
    for word in ("first", "second"):
        child = spawn("it", ["/bin/echo", word], log_file=tmp_path / "it.log", death_signal=signal.SIGKILL)
        await child.wait()
        said.append(child.last_output())
    assert said == ["first", "second"]
    assert (tmp_path / "it.log").read_text(encoding="ascii") == "first\nsecond\n"


async def test_stages_are_stopped_in_reverse_also_after_an_interrupt(sleepers: list[Sleeper], story: list[str]) -> None:
    async def serve() -> None:
        async with supervisor(io.StringIO()) as up:
            for sleeper in sleepers:
                await up.start([sleeper])
            await up.watch()

    serving = asyncio.create_task(serve())
    await until(lambda: len(story) == 3)
    serving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await serving
    assert story == ["start 0", "start 1", "start 2", "stop 2", "stop 1", "stop 0"]
    assert all(map(gone, pids(sleepers)))


async def test_a_stage_that_fails_takes_what_was_started_with_it(sleepers: list[Sleeper]) -> None:
    sleepers[2].failures = 1

    async def serve() -> None:
        async with supervisor(io.StringIO()) as up:
            await up.start(sleepers[:1])
            await up.start(sleepers[1:])

    with pytest.raises(Misconfigured, match="not yet"):
        await serve()
    assert len(pids(sleepers)) == 2
    assert all(map(gone, pids(sleepers)))


async def test_who_does_not_come_back_is_tried_again_and_the_others_go_on(sleepers: list[Sleeper]) -> None:
    output = io.StringIO()
    lists: list[list[int]] = []
    async with supervisor(output, lists) as up:
        await up.start(sleepers)
        watching = asyncio.create_task(up.watch())
        await until(lambda: lists == [[0, 1, 2]])
        first = pids(sleepers)
        sleepers[1].failures = 2
        os.kill(first[1], signal.SIGKILL)
        await until(lambda: len(lists) == 3)
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        assert pids(sleepers)[::2] == first[::2]
        assert pids(sleepers)[1] != first[1]
    assert lists == [[0, 1, 2], [0, 2], [0, 1, 2]]
    said = output.getvalue()
    assert f"gateway 1 (pid {first[1]}) ended: killed by SIGKILL" in said
    assert said.count("gateway 1 does not start, and is tried again: not yet") == 1
    assert "gateway 1 is back as pid" in said


async def test_a_full_disk_stops_nothing_that_runs(sleepers: list[Sleeper]) -> None:
    """What runs cannot be written down, nor said into a file: who dies is started again all the same."""

    def changed(_entries: Sequence[Entry]) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    async with Supervisor(Board(Console(file=FullDisk())), restart=True, changed=changed) as up:
        await up.start(sleepers)
        watching = asyncio.create_task(up.watch())
        first = pids(sleepers)
        os.kill(first[1], signal.SIGKILL)
        await until(lambda: watching.done() or pids(sleepers)[1] != first[1])
        assert not watching.done()
        assert pids(sleepers)[::2] == first[::2]
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
    assert all(map(gone, pids(sleepers)))


async def test_a_child_that_the_machine_does_not_start_is_tried_again(sleepers: list[Sleeper], tmp_path: Path) -> None:
    """Its log has no folder any more; anything else that the machine refuses comes out the same."""
    output = io.StringIO()
    async with supervisor(output) as up:
        await up.start(sleepers)
        watching = asyncio.create_task(up.watch())
        first = pids(sleepers)
        away = tmp_path.rename(tmp_path.with_name("away"))
        os.kill(first[1], signal.SIGKILL)
        await until(lambda: watching.done() or "gateway 1 does not start" in output.getvalue())
        away.rename(tmp_path)
        await until(lambda: watching.done() or pids(sleepers)[1] != first[1])
        assert not watching.done()
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)


async def test_a_second_interrupt_does_not_wait(tmp_path: Path, story: list[str]) -> None:
    class Stubborn(Sleeper):
        async def stop(self) -> None:
            self._story.append("stopping")
            await asyncio.Event().wait()

    stubborn = Stubborn(0, tmp_path, story)

    async def serve() -> None:
        async with supervisor(io.StringIO()) as up:
            await up.start([stubborn])
            await up.watch()

    serving = asyncio.create_task(serve())
    await until(lambda: story == ["start 0"])
    serving.cancel()
    await until(lambda: story == ["start 0", "stopping"])
    serving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await serving
    assert all(map(gone, pids([stubborn])))


def supervisor(output: io.StringIO, lists: list[list[int]] | None = None) -> Supervisor:
    def changed(entries: Sequence[Entry]) -> None:
        if lists is not None:
            lists.append([entry.index for entry in entries])

    return Supervisor(Board(Console(file=output, width=200)), restart=True, changed=changed)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("nats://hublog:secret@127.0.0.1:4222", "nats://127.0.0.1:4222"),
        ("postgresql://u:p@db.example:5432/h?host=x", "postgresql://db.example:5432/h?host=x"),
        ("postgresql://hublog@/hublog?host=%2Ftmp", "postgresql://hublog@/hublog?host=%2Ftmp"),
        ("nats://hush@one:4222", "nats://one:4222"),
        ("nats://u:p@one:4222,nats://u:p@two:4222", "nats://one:4222,nats://two:4222"),
        ("nats://one:4222,tls://hu@sh@two:4222", "nats://one:4222,tls://two:4222"),
        (None, ""),
    ],
)
def test_passwords_are_not_shown(url: str | None, expected: str) -> None:
    assert shown(url) == expected
