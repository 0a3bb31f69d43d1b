"""The judge and the sweeper on a real log and real rows."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

import migrations
from events import codec, node, session, subjects
from events.ids import HubName
from events.subjects import HubSubjects
from projections.read import ReadModel
from projections.runner import Projector
from service.log.author import Author
from service.log.commands import CommandRunner, SessionAggregate
from service.log.jetstream import JetStreamLog, jetstream_log, migrate_log
from service.log.memory import MemoryEventLog
from service.nodes.judge import Judge, lost_id
from service.nodes.lease import Lease
from service.nodes.rows import StoredRows
from service.nodes.sweeper import Sweeper
from service.up.postgres import PostgresServer
from tests.servers.nats import MakeNats
from tests.servers.plain_fold import PlainFold
from tests.servers.processes import until
from tests.servers.read_models import dump

CHAT = HubSubjects(HubName("chat"), 1)
TTL_S = 60.0
MAX_AGE_S = 1_000.0
MANY = 5_000
DOWN_S = 20.0
RACERS = 40
SHORT_TTL_S = 3.0


class World:
    """A projector, a sweeper and whoever writes sessions, on one log. ``now_us`` may be moved on."""

    def __init__(self, log: Any, dsn: str, now_us: Any = None) -> None:
        self.log = log
        self.author = Author(now_us) if now_us is not None else Author()
        self.runner = CommandRunner(log, self.author, SessionAggregate())
        self.projector = Projector(dsn, log, 0)
        self.model = ReadModel(dsn, 1)
        self.clock_s = 0.0
        self.sweeper = Sweeper(
            0,
            log,
            StoredRows(self.model, dsn),
            self.author,
            self.runner,
            lambda: self.reached,
            lambda: False,
            ttl_s=TTL_S,
            max_age_s=MAX_AGE_S,
            clock=lambda: self.clock_s,
        )

    @property
    def reached(self) -> int | None:
        at = self.projector.checkpoint
        return at.sequence if at is not None and self.projector.state == "leading" else None

    async def run(self, name: str, *commands: session.Command) -> session.State:
        for command in commands:
            executed = await self.runner.execute(CHAT.session(name), command, actor="system:test")
        return executed.known.state

    async def lose(self, incarnation: str, last_renewal_us: int = 7) -> None:
        said = node.Lost(node="gw", incarnation=incarnation, last_renewal_us=last_renewal_us)
        event = self.author.write(said, actor="system:test", event_id=lost_id(incarnation))
        await self.log.publish(subjects.node("gw"), event)

    async def projected(self) -> None:
        last = await self.log.last_sequence(0)
        await until(lambda: (self.reached or 0) >= last)

    async def state(self, name: str) -> session.State:
        return (await self.runner.load(CHAT.session(name))).state


@asynccontextmanager
async def at_work(world: World, *more: Any) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(job) for job in (world.projector.run(), *more)]
    try:
        await until(lambda: world.reached is not None)
        yield
        assert not any(task.done() for task in tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await world.model.close()


def opening(incarnation: str, *, resumable: bool = False) -> session.Open:
    return session.Open("gw", incarnation, "c1", resumable=resumable)


@pytest.fixture
async def jetstream(fresh_nats: MakeNats) -> AsyncIterator[JetStreamLog]:
    nats = await fresh_nats()
    await migrate_log(nats.url, random=b"abc")
    log = await jetstream_log(nats.url, name="test")
    yield log
    await log.close()


async def test_thousands_of_sessions_of_a_lost_node(jetstream: JetStreamLog, database: str) -> None:
    world = World(jetstream, database)

    async def some(first: int) -> None:
        for number in range(first, MANY, 50):
            await world.run(f"s{number}", opening("dead", resumable=number % 2 == 0))

    async with at_work(world):
        await asyncio.gather(*(some(first) for first in range(50)))
        await world.run("elsewhere", opening("alive"))
        await world.run("moved", opening("dead", resumable=True), session.Attach("gw", "alive", "c2", 1, 0, 1))
        await world.projected()
        await world.lose("dead", last_renewal_us=world.author.now_us() + 3_000_000)
        await world.projected()
        async with asyncio.timeout(10):
            await world.sweeper.round()
        assert world.sweeper.done == {"closed": MANY // 2, "detached": MANY // 2}
        await world.projected()
        assert (await world.state("elsewhere")).status == (await world.state("moved")).status == "active"
        async with await psycopg.AsyncConnection.connect(database) as connection:
            counted = await connection.execute(
                "SELECT state, reason, count(*) FROM sessions GROUP BY state, reason ORDER BY state"
            )
            assert await counted.fetchall() == [
                ("active", None, 2),
                ("closed", "node_lost", MANY // 2),
                ("detached", None, MANY // 2),
            ]
        # What nobody owes any more costs nothing: not one more event.
        last = await jetstream.last_sequence(0)
        world.clock_s += 11
        await world.sweeper.round()
        assert await jetstream.last_sequence(0) == last


class Clock:
    def __init__(self) -> None:
        self.us = 1_795_255_200_000_000

    def __call__(self) -> int:
        return self.us


async def test_overdue_ageing_and_forgotten_sessions(database: str) -> None:
    clock = Clock()
    log = MemoryEventLog(now_us=clock)
    world = World(log, database, clock)
    async with at_work(world):
        await world.run("forgotten", opening("alive"), session.Join(("lobby", "attic")))
        await world.run("lobbyist", opening("alive"), session.Join(("lobby",)))
        clock.us += 10_000_000
        await world.run("away", opening("alive", resumable=True), session.Detach("c1", "timeout", 5))
        await world.projected()
        await world.sweeper.round()
        assert not world.sweeper.done

        clock.us += int(TTL_S * 1e6)  # not longer than allowed: it may still come back
        await world.sweeper.round()
        assert not world.sweeper.done
        clock.us += 1
        await world.sweeper.round()
        await world.projected()
        await world.sweeper.round()
        assert world.sweeper.done == {"expired": 1}
        assert (await world.state("away")).reason == "expired"

        clock.us += int(MAX_AGE_S * 1e6 / 2)
        world.clock_s += MAX_AGE_S
        log.forget(0, before=3)  # the first session's events; then nothing of it is there to be carried
        before = await world.state("lobbyist")
        await world.sweeper.round()
        await world.projected()
        assert world.sweeper.done == {"expired": 1, "forgotten": 1, "carried": 1}
        assert await world.state("lobbyist") == before
        world.clock_s += MAX_AGE_S
        await world.sweeper.round()
        assert world.sweeper.done == {"expired": 1, "forgotten": 1, "carried": 1}, "what was carried is young again"
        await world.projected()

        tables = await dump(database)
        assert tables["sessions"]["chat", "forgotten"]["state"] == "closed"
        assert tables["groups"] == {("chat", "lobby"): (1, 1)}
        assert tables["hubs"]["chat"][1:] == (1, 0, 2)
        ended = [left for (_, name, _, _), (_, left, _) in tables["memberships"].items() if name == "forgotten"]
        assert None not in ended
        assert len(ended) == 2


async def test_two_sweepers_at_once_expire_each_once_and_nobody_who_came_back_a_moment_before(
    fresh_nats: MakeNats, database: str
) -> None:
    """Each with a connection and a runner of its own, on rows that do not know of the returns yet."""
    nats = await fresh_nats()
    await migrate_log(nats.url, random=b"abc")
    logs = [await jetstream_log(nats.url, name=f"projector {number}") for number in range(2)]
    worlds = [World(log, database) for log in logs]
    opened = session.Open("gw", "alive", "c1", resumable=True)
    late, back = [f"late{n}" for n in range(RACERS)], [f"back{n}" for n in range(RACERS)]
    async with at_work(worlds[0]):
        await asyncio.gather(
            *(worlds[0].run(name, opened, session.Detach("c1", "timeout", 5)) for name in (*late, *back))
        )
        await worlds[0].projected()
        reached = worlds[0].reached
    detached = [(await worlds[0].state(name)).detached_since_us or 0 for name in (*late, *back)]
    for world in worlds:
        world.model = ReadModel(database, 1)
        rows = StoredRows(world.model, database)
        runner = CommandRunner(world.log, world.author, SessionAggregate())
        world.sweeper = Sweeper(
            0,
            world.log,
            rows,
            world.author,
            runner,
            lambda: reached,
            lambda: False,
            ttl_s=SHORT_TTL_S,
            max_age_s=MAX_AGE_S,
        )
    await until(lambda: time.time() * 1e6 > min(detached) + SHORT_TTL_S * 0.6e6)
    now_us = worlds[1].author.now_us()
    ttl_us = int(SHORT_TTL_S * 1e6)
    returns = [session.Attach("gw", "alive", "c2", 1, now_us, ttl_us) for _ in back]
    await asyncio.gather(*(worlds[1].run(name, command) for name, command in zip(back, returns, strict=True)))
    await until(lambda: time.time() * 1e6 > max(detached) + SHORT_TTL_S * 1e6)
    await asyncio.gather(*(world.sweeper.round() for world in (*worlds, *worlds)))
    ends: dict[str, list[str]] = {}
    async for recorded in logs[0].read("ev.0.chat.s.*.log", 1, await logs[0].last_sequence(0)):
        event = codec.event_of(codec.envelope(recorded.payload))
        if isinstance(event, session.Closed):
            ends.setdefault(str(subjects.parse(recorded.subject).name), []).append(event.reason)
    assert ends == {name: ["expired"] for name in late}
    assert sum(world.sweeper.done["expired"] for world in worlds) == RACERS
    assert {(await worlds[0].state(name)).status for name in back} == {"active"}
    for world in worlds:
        await world.model.close()
        await world.log.close()


async def test_the_rows_after_sweeping_are_those_of_the_events(database: str) -> None:
    log = MemoryEventLog()
    world = World(log, database)
    async with at_work(world):
        for number in range(20):
            await world.run(f"s{number}", opening("dead", resumable=number % 2 == 0), session.Join(("lobby",)))
        await world.lose("dead")
        await world.projected()
        await world.sweeper.round()
        await world.projected()
        plain = PlainFold()
        for event in log._partitions[0].events:
            plain.take(event)
        assert await dump(database) == plain.tables()
        assert world.sweeper.done == {"closed": 10, "detached": 10}


async def test_without_postgres_nothing_is_swept_it_shows_and_it_is_owed(tmp_path: Path) -> None:
    server = PostgresServer(tmp_path / "postgres", log_file=tmp_path / "postgres.log")  # durable: it will be killed
    await server.start()
    try:
        await asyncio.to_thread(migrations.upgrade, server.dsn)
        world = World(MemoryEventLog(), server.dsn)
        async with at_work(world, world.sweeper.run()):
            await world.run("s", opening("dead"))
            await world.projected()
            await server.kill()
            await world.lose("dead")
            await until(lambda: world.sweeper.problem is not None or world.reached is None)
            world.clock_s += 100
            assert world.sweeper.age_s == 100
            assert (await world.state("s")).status == "active"
            await server.restart()
            await until(lambda: world.sweeper.done == {"closed": 1})
            await until(lambda: world.sweeper.age_s == 0)
            assert world.sweeper.problem is None
    finally:
        await server.stop()


async def test_nobody_is_lost_because_nats_was_away(fresh_nats: MakeNats, database: str) -> None:
    nats = await fresh_nats()
    await migrate_log(nats.url, random=b"abc")
    async with AsyncExitStack() as stack:

        async def connect(name: str) -> JetStreamLog:
            log = await jetstream_log(nats.url, name=name)
            stack.push_async_callback(log.close)
            return log

        log = await connect("judge")
        world = World(log, database)
        judge = Judge(
            log, StoredRows(world.model, database), world.author, lambda: world.reached is not None, lambda: False
        )
        leases = []
        for name in ("gw-0", "gw-1"):
            of_node = await connect(name)
            leases.append(Lease(name, "0", "", of_node, of_node, world.author))
            await leases[-1].start()
        async with at_work(world, judge.run(), *(lease.keep() for lease in leases)):
            await until(lambda: judge.problem is None and judge.age_s < 1.5)
            await nats.kill()
            back_at = time.monotonic() + DOWN_S
            await until(lambda: time.monotonic() > back_at, timeout_s=DOWN_S + 1)
            assert judge.age_s > DOWN_S - 5, "it had nothing to look at"
            await nats.restart()
            returned_us = world.author.now_us()
            await until(lambda: all(lease.renewed_us > returned_us for lease in leases))
            renewed_at = time.monotonic()
            await until(lambda: time.monotonic() - judge.age_s - renewed_at > 2)  # it has looked, and looked again
            assert judge.problem is None
            assert judge.lost == 0
            said = [event.payload async for event in log.read("ev.0._sys.>", 1, await log.last_sequence(0))]
            assert len(said) == 2
            assert not any(b"node.lost" in payload for payload in said)
