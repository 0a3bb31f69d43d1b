"""Projector processes that are killed at the worst moments, on a real log: the rows equal a plain fold all the same."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import psycopg
import pytest

from projections import runner
from projections.runner import Projector
from service.log.jetstream import JetStreamLog, jetstream_log, migrate_log
from service.up.child import Child, spawn
from service.up.nats_server import NatsServer
from tests.servers.histories import History, play
from tests.servers.nats import MakeNats
from tests.servers.plain_fold import PlainFold
from tests.servers.processes import POLL_S, until
from tests.servers.read_models import checkpoint, dump
from tests.servers.up import free_block

WRITING_HUBS = (
    "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'hublog projector%'"
    " AND datname = current_database() AND wait_event_type = 'Lock' AND query ILIKE '%INSERT INTO hubs%'"
)


class World:
    """A log, a database, and projector processes to be killed."""

    def __init__(self, nats: NatsServer, log: JetStreamLog, dsn: str, folder: Path) -> None:
        self.log = log
        self.dsn = dsn
        self._nats = nats
        self._folder = folder
        self._admin_port = free_block() + 200
        self.processes: dict[str, Child] = {}

    def start(self, name: str) -> None:
        """``hublog projector``, as it is run everywhere."""
        environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith("HUBLOG_")},
            "HUBLOG_AUTH": "none",
            "HUBLOG_NATS_URL": self._nats.url,
            "HUBLOG_POSTGRES_DSN": self.dsn,
            "HUBLOG_ADMIN_PORT": str(self._admin_port + ord(name) - ord("a")),
        }
        program = [sys.executable, "-P", "-m", "service", "projector"]
        log_file = self._folder / f"projector-{name}.log"
        self.processes[name] = spawn(name, program, log_file=log_file, death_signal=signal.SIGKILL, env=environment)

    async def kill(self, name: str) -> None:
        process = self.processes.pop(name)
        assert process.returncode is None, process.last_output()
        await process.kill()

    async def moved(self, beyond: int) -> int:
        """The checkpoint, once it is beyond a sequence."""
        return await self._reach(lambda sequence: sequence > beyond)

    async def projected(self) -> None:
        """Until everything in the log is in the rows."""
        last = -1
        while last != (now := await self.log.last_sequence(0)):  # what the load had under way may still be stored
            last = now
            await self._reach(lambda sequence, last=last: sequence >= last)

    async def expected(self) -> dict[str, object]:
        model = PlainFold()
        async for event in self.log.read("ev.0.>", 1, await self.log.last_sequence(0)):
            model.take(event)
        return model.tables()

    async def _reach(self, enough: Callable[[int], bool]) -> int:
        async with asyncio.timeout(30):
            while not enough(sequence := await checkpoint(self.dsn)):
                for process in self.processes.values():
                    assert process.returncode is None, process.last_output()
                await asyncio.sleep(POLL_S)
            return sequence

    async def about_to_commit(self, watcher: psycopg.AsyncConnection) -> None:
        """Until a projector waits for the table that a transaction writes near its end."""
        async with asyncio.timeout(30):
            while await (await watcher.execute(WRITING_HUBS)).fetchone() != (1,):  # noqa: ASYNC110  asks Postgres
                await asyncio.sleep(POLL_S)


@pytest.fixture
async def world(fresh_nats: MakeNats, database: str, tmp_path: Path) -> AsyncIterator[World]:
    nats = await fresh_nats()
    await migrate_log(nats.url, random=b"abc")
    log = await jetstream_log(nats.url, name="test")
    world = World(nats, log, database, tmp_path)
    yield world
    for process in world.processes.values():
        await process.kill()
    await log.close()


@asynccontextmanager
async def load(log: JetStreamLog, seed: int) -> AsyncIterator[None]:
    """Things happening all the time."""
    history = History(seed, sessions=30, hubs=("chat", "ops"))
    task = asyncio.create_task(play(history, log, 1_000_000))
    try:
        yield
        assert not task.done()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_killed_in_the_middle_of_a_load_with_another_beside_it(world: World) -> None:
    world.start("a")
    world.start("b")
    async with load(world.log, 1):
        at = await world.moved(0)
        for name in "abab":  # whichever is at work: the other takes over
            await world.kill(name)
            at = await world.moved(await checkpoint(world.dsn))
            world.start(name)
        assert at > 0
    await world.projected()
    assert await dump(world.dsn) == await world.expected()


async def test_killed_between_copy_and_commit(world: World) -> None:
    async with (
        await psycopg.AsyncConnection.connect(world.dsn, autocommit=True) as admin,
        await psycopg.AsyncConnection.connect(world.dsn, autocommit=True) as watcher,
    ):
        world.start("a")
        async with load(world.log, 2):
            at = await world.moved(0)
            for _ in range(3):
                # A table that is written after the log's copy is held, so that this is done and nothing is committed.
                async with admin.transaction():
                    await admin.execute("LOCK TABLE hubs IN EXCLUSIVE MODE")
                    await world.about_to_commit(watcher)
                    before = await checkpoint(world.dsn)
                    world.start("b")
                    await world.kill("a")
                    assert await checkpoint(world.dsn) == before
                await world.moved(before)
                world.processes["a"] = world.processes.pop("b")
            assert before >= at
    await world.projected()
    assert await dump(world.dsn) == await world.expected()


async def test_two_at_work_at_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the lock, which is only for economy: the checkpoint alone keeps two projectors from harm."""
    monkeypatch.setattr(runner, "_LOCK", "SELECT true WHERE %s + %s IS NOT NULL")
    projectors = [Projector(world.dsn, world.log, 0) for _ in range(2)]
    tasks = [asyncio.create_task(projector.run()) for projector in projectors]
    history = History(3, sessions=30, hubs=("chat", "ops"))
    await play(history, world.log, 1_500)
    await world.projected()
    await until(lambda: all(projector.failures > 0 or projector.batches > 0 for projector in projectors))
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert sum(projector.failures for projector in projectors) > 0
    assert sum(projector.events for projector in projectors) == await world.log.last_sequence(0)
    assert await dump(world.dsn) == await world.expected()
