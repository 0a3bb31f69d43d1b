"""The projector on a real Postgres: live, after failures, beside another one, with events nobody can read."""

import asyncio
import random
import string
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import psycopg
import pytest
from structlog.testing import capture_logs

import migrations
from events import session
from events.envelope import NewEvent, Recorded
from events.errors import LogRegressed, Misconfigured, ReadModelUnavailable
from events.ids import EventId, HubName
from events.subjects import HubSubjects
from projections.read import ReadModel, hubs
from projections.runner import Projector
from service.log.memory import MemoryEventLog
from service.up.postgres import PostgresServer
from tests.servers.histories import History, stored_at_us
from tests.servers.plain_fold import PlainFold
from tests.servers.processes import until
from tests.servers.read_models import checkpoint, dump

CHAT = HubSubjects(HubName("chat"), 1)
READABLE = b'{"id":"%d","type":"session.opened.v1","at":"","actor":"a","data":%b}'

# Of letters that do not compress: an index takes 2,700 bytes.
LONG_NAME = "".join(random.Random(1).choices(string.ascii_letters, k=9_000)).encode()
ENDLESS = b'{"target":"t","selector":{"to":"all"},"ttlMs":18446744073709551615}'
LONG = b'{"node":"n","incarnation":"i","connection":"c","after":{"status":"active","node":"%b"}}' % LONG_NAME


def memory_log(partitions: int = 1, *, of: int = 0, epoch: str = "mema") -> MemoryEventLog:
    """With the clock of histories, in step with partition ``of``."""
    log = MemoryEventLog(partitions, epoch=epoch, now_us=lambda: stored_at_us(log._partitions[of].last + 1))
    return log


def log_of(history: History) -> MemoryEventLog:
    log = memory_log()
    add(log, history.events)
    return log


def add(log: MemoryEventLog, events: list[Recorded]) -> None:
    for number, event in enumerate(events):
        log.store(event.subject, NewEvent(EventId(f"{event.sequence}-{number}"), event.payload))


def stored(log: MemoryEventLog) -> list[Recorded]:
    return list(log._partitions[0].events)


def plain(log: MemoryEventLog) -> dict[str, object]:
    model = PlainFold()
    for event in stored(log):
        model.take(event)
    return model.tables()


@asynccontextmanager
async def running(*projectors: Projector) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(projector.run()) for projector in projectors]
    try:
        yield
        assert not any(task.done() for task in tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def at_end(log: MemoryEventLog, *projectors: Projector) -> Callable[[], bool]:
    last = stored(log)[-1].sequence
    return lambda: any(p.checkpoint is not None and p.checkpoint.sequence == last for p in projectors)


async def test_follows_the_log_and_continues_where_it_was(database: str) -> None:
    history = History(7).steps(400)
    log = log_of(history)
    first = Projector(database, log, 0)
    async with running(first):
        await until(at_end(log, first))
        assert await dump(database) == plain(log)
        await until(lambda: first.state == "leading" and first.lag == 0)
        before = len(history.events)
        history.steps(200)
        add(log, history.events[before:])
        await until(at_end(log, first))
    assert first.events == len(history.events)
    before = len(history.events)
    history.steps(100)
    add(log, history.events[before:])
    second = Projector(database, log, 0)
    async with running(second):
        await until(at_end(log, second))
    assert second.events == len(history.events) - before
    assert await dump(database) == plain(log)


async def test_when_nothing_comes_the_rows_are_as_of_now(database: str) -> None:
    log = log_of(History(1).steps(30))
    model = ReadModel(database, 1)
    projector = Projector(database, log, 0)

    ages: list[int] = []

    async def watch() -> None:
        while not ages or abs(ages[-1]) > 5_000:
            rows = await model.rows("SELECT (extract(epoch FROM now() - as_of) * 1000)::bigint FROM checkpoints", {})
            ages.extend(age for (age,) in rows)

    async with running(projector):
        await asyncio.wait_for(watch(), 10)
    # The events are of a fixed day: only looking at an idle log makes the rows younger than those.
    assert abs(ages[0]) > 5_000 > abs(ages[-1])
    await model.close()


POISON: dict[str, tuple[str, bytes]] = {
    "no envelope": (CHAT.session("x"), b"\xff\xfe"),
    "not UTF-8 inside": (
        CHAT.all(),
        b'{"id":"1","type":"invocation.requested.v1","at":"","actor":"a","data":["\xff"]}',
    ),
    "unknown type": (CHAT.all(), b'{"id":"1","type":"invocation.whispered.v1","at":"","actor":"a"}'),
    "wrong shape": (CHAT.group("g"), b'{"id":"1","type":"invocation.requested.v1","at":"","actor":"a","data":{}}'),
    "wrong place": (CHAT.session("x"), b'{"id":"1","type":"node.lost.v1","at":"","actor":"a","data":{}}'),
    "no state": (CHAT.session("x"), READABLE % (1, b'{"node":"n","incarnation":"i","connection":"c"}')),
    "no hub": ("ev.0.No Hub.all", b'{"id":"1","type":"invocation.requested.v1","at":"","actor":"a"}'),
    "no subject of ours": ("ev.0.chat.elsewhere.a.b", b"{}"),
    "a NUL in a name": (
        CHAT.session("x"),
        READABLE % (1, b'{"node":"n","incarnation":"i","connection":"c","after":{"status":"active","user":"\\u0000"}}'),
    ),
    "a NUL in a type": (CHAT.all(), b'{"id":"1","type":"a\\u0000b","at":"","actor":"a"}'),
    "a number too large": (
        CHAT.session("x"),
        READABLE
        % (1, b'{"node":"n","incarnation":"i","connection":"c","after":{"status":"active","generation":5000000000}}'),
    ),
    "a time to live too long": (
        CHAT.all(),
        b'{"id":"1","type":"invocation.requested.v1","at":"","actor":"a","data":%b}' % ENDLESS,
    ),
    "a name too long": (CHAT.session("x"), READABLE % (1, LONG)),
}


@pytest.mark.parametrize("kind", POISON)
async def test_what_cannot_be_read_is_parked_with_what_follows_it(database: str, kind: str) -> None:
    subject, payload = POISON[kind]
    history = History(3, sessions=4).steps(60)
    history.put(subject, payload)
    history.steps(60)
    opened = session.Opened(node="n", incarnation="i", connection="c", after=session.State(status="active"))
    history.add(subject, opened)
    log = log_of(history)
    projector = Projector(database, log, 0)
    with capture_logs() as lines:
        async with running(projector):
            await until(at_end(log, projector))
    tables = await dump(database)
    first = next(event.sequence for event in stored(log) if event.payload == payload)
    waiting = {e.sequence: subject for e in stored(log) if e.subject == subject and e.sequence >= first}
    assert tables["parked"] == waiting
    assert {number: row[2] for number, row in tables["event_log"].items()} == {
        event.sequence: event.payload for event in stored(log)
    }
    assert projector.parked == len(waiting)
    assert [line["sequence"] for line in lines if line["event"] == "projection.parked"] == [first]
    plainly = PlainFold()
    for event in stored(log):
        if event.sequence not in waiting:
            plainly.take(event)
    for table in ("sessions", "memberships", "groups", "invocations", "nodes"):
        assert tables[table] == plainly.tables()[table]
    # What is parked stays parked for the next projector.
    history.add(subject, opened)
    add(log, history.events[-1:])
    other = Projector(database, log, 0)
    async with running(other):
        await until(at_end(log, other))
    assert (await dump(database))["parked"] == {**waiting, stored(log)[-1].sequence: subject}


@pytest.mark.parametrize("kind", ["shorter", "another epoch", "another event", "beginning gone"])
async def test_a_log_that_regressed_halts_the_projector(database: str, kind: str) -> None:
    history = History(5).steps(120)
    log = log_of(history)
    first = Projector(database, log, 0)
    async with running(first):
        await until(at_end(log, first))
    before = await dump(database)
    events = history.events
    if kind == "shorter":
        other = memory_log()
        add(other, events[:-1])
    elif kind == "another epoch":
        other = memory_log(epoch="memb")
        add(other, events)
    elif kind == "another event":
        other = memory_log()
        add(other, [*events[:-1], events[0], events[0]])
    else:
        other = log
        add(other, events[:3])
        other.forget(0, len(events) + 2)
    projector = Projector(database, other, 0)
    with capture_logs() as lines, pytest.raises(LogRegressed):
        await asyncio.wait_for(projector.run(), 10)
    assert projector.state == "halted"
    assert [line["log_level"] for line in lines if line["event"] == "projection.halted"] == ["critical"]
    assert await dump(database) == before


async def test_a_log_that_aged_out_behind_the_checkpoint_is_followed(database: str) -> None:
    history = History(5).steps(120)
    log = log_of(history)
    first = Projector(database, log, 0)
    async with running(first):
        await until(at_end(log, first))
    expected = plain(log)
    log.forget(0, stored(log)[-1].sequence + 1)
    second = Projector(database, log, 0)
    async with running(second):
        await until(lambda: second.state == "leading")
    assert await dump(database) == expected


async def test_new_read_models_start_where_the_log_begins(database: str) -> None:
    history = History(5).steps(120)
    log = log_of(history)
    log.forget(0, 21)
    projector = Projector(database, log, 0)
    with capture_logs() as lines:
        async with running(projector):
            await until(at_end(log, projector))
    assert list((await dump(database))["event_log"]) == list(range(21, len(history.events) + 1))
    assert [line["lost"] for line in lines if line["event"] == "projection.starts_late"] == [20]


async def test_connections_cut_in_the_middle_lose_nothing(database: str) -> None:
    history = History(11, sessions=40).steps(3_000)
    log = log_of(History(11, sessions=40))
    projector = Projector(database, log, 0)
    async with (
        running(projector),
        await psycopg.AsyncConnection.connect(database, autocommit=True) as admin,
    ):
        for start in range(0, len(history.events), 250):
            add(log, history.events[start : start + 250])
            await until(lambda: projector.state == "leading")
            failures = projector.failures
            await admin.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'hublog projector%'"
                " AND datname = current_database()"
            )
            await until(lambda: projector.failures > failures)  # noqa: B023  awaited within the turn
        await until(at_end(log, projector))
    assert projector.failures >= 5
    assert await dump(database) == plain(log)


async def test_without_postgres_it_tries_until_there_is_one(tmp_path: object) -> None:
    log = log_of(History(1).steps(10))
    projector = Projector(f"postgresql://hublog@/none?host={tmp_path}", log, 0)
    with capture_logs() as lines:
        async with running(projector):
            await until(lambda: projector.failures >= 3)
    assert [line["event"] for line in lines] == ["projection.interrupted"]


async def test_without_a_schema_it_says_so(empty_database: str) -> None:
    with pytest.raises(Misconfigured, match="migrate"):
        await asyncio.wait_for(Projector(empty_database, log_of(History(1).steps(10)), 0).run(), 10)


async def test_a_second_projector_stands_by_and_takes_over(database: str) -> None:
    history = History(13).steps(200)
    log = log_of(history)
    first, second = Projector(database, log, 0), Projector(database, log, 0)
    async with running(second):
        async with running(first):
            await until(lambda: {first.state, second.state} == {"leading", "standing_by"})
            before = len(history.events)
            add(log, history.steps(200).events[before:])
            await until(at_end(log, first, second))
        await until(lambda: second.state == "leading")
        before = len(history.events)
        add(log, history.steps(200).events[before:])
        await until(at_end(log, second))
    assert await dump(database) == plain(log)


async def test_partitions_are_apart(database: str) -> None:
    """Two partitions, two projectors at once, one database."""
    here = History(17, partitions=2, hubs=("chat", "d")).steps(150)
    there = History(18, partitions=2, hubs=("a", "ops")).steps(150)
    assert {event.subject[:5] for event in here.events} == {"ev.0."}
    assert {event.subject[:5] for event in there.events} == {"ev.1."}
    log = memory_log(2)
    add(log, here.events)
    log._now_us = lambda: stored_at_us(log._partitions[1].last + 1)
    add(log, [msgspec.structs.replace(event, sequence=event.sequence + 10_000) for event in there.events])
    one, two = Projector(database, log, 0), Projector(database, log, 1)
    async with running(one, two):
        await until(at_end(log, one))
        last = log._partitions[1].last
        await until(lambda: two.checkpoint is not None and two.checkpoint.sequence == last)
    for number in (0, 1):
        model = PlainFold()
        for event in log._partitions[number].events:
            model.take(event)
        expected = model.tables()
        found = await dump(database, number)
        assert {t: v for t, v in found.items() if t != "nodes"} == {t: v for t, v in expected.items() if t != "nodes"}
    assert await checkpoint(database, 1) == last


async def test_postgres_is_killed_and_comes_back(tmp_path: Path) -> None:
    """Projector and questions go on by themselves, and nothing is missing."""
    server = PostgresServer(tmp_path / "postgres", log_file=tmp_path / "postgres.log")  # durable: it will be killed
    await server.start()
    model = ReadModel(server.dsn, 1)
    try:
        await asyncio.to_thread(migrations.upgrade, server.dsn)
        history = History(19).steps(300)
        log = log_of(history)
        projector = Projector(server.dsn, log, 0)
        async with running(projector):
            await until(at_end(log, projector))
            assert (await hubs.page(model)).items
            await server.kill()
            before = len(history.events)
            add(log, history.steps(200).events[before:])
            await until(lambda: projector.failures > 0)
            with pytest.raises(ReadModelUnavailable):
                await hubs.page(model)
            await server.restart()
            await until(at_end(log, projector))
            page = await hubs.page(model)
        assert page.position == f"mema.0-{len(history.events)}"
        assert await dump(server.dsn) == plain(log)
    finally:
        await model.close()
        await server.stop()
