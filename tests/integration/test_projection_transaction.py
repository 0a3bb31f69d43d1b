"""One batch, one transaction: wherever it breaks off, nothing of it is kept or heard of; the connection serves on."""

import asyncio
import random
import string
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import msgspec
import psycopg
import pytest
from psycopg.pq import TransactionStatus

from events.envelope import Recorded
from events.ids import Epoch
from projections import checkpoint as checkpoints
from projections.checkpoint import CHANNEL, Checkpoint, Connection
from projections.fold import Rows, fold
from projections.write import Superseded, is_poison, refusal, store
from tests.servers.histories import History
from tests.servers.processes import POLL_S
from tests.servers.read_models import checkpoint, dump

EPOCH = Epoch("k7qd")
# Of letters that do not compress: an index takes 2,700 bytes.
LONG = "".join(random.Random(1).choices(string.ascii_letters, k=9_000))
WAITING = "SELECT count(*) FROM pg_stat_activity WHERE pid = %s AND wait_event_type = 'Lock'"


@asynccontextmanager
async def connected(dsn: str) -> AsyncIterator[Connection]:
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        yield connection


@pytest.fixture
def events() -> Sequence[Recorded]:
    return History(2).steps(200).events


@pytest.fixture
async def connection(database: str, events: Sequence[Recorded]) -> AsyncIterator[Connection]:
    """Ten events are written already."""
    async with connected(database) as connection:
        at = await checkpoints.load(connection, 0, EPOCH)
        await store(connection, at, fold(events[:10], ()))
        yield connection


def broken(events: Sequence[Recorded], how: str) -> Rows:
    """A batch in which one row is refused, by Postgres or before it is sent, and others of all kinds are not."""
    rows = fold(events, ())
    assert rows.invocations
    assert rows.sessions
    assert rows.stays
    if how == "a session":
        row = next(iter(rows.sessions.values()))
        row.state = msgspec.structs.replace(row.state, user=LONG)
    elif how == "an invocation":
        rows.invocations[3].invocation_id = LONG
    else:
        rows.invocations[3].ttl_ms = 2**63
    return rows


async def heard(listener: Connection) -> list[str]:
    """Everything that was told until now: what is committed by then comes before the mark."""
    await listener.execute("SELECT pg_notify(%s, 'mark')", (CHANNEL,))
    told: list[str] = []
    async for notice in listener.notifies(timeout=10):
        if notice.payload == "mark":
            return told
        told.append(notice.payload)
    raise AssertionError(f"only {told} came")


async def waits(watcher: Connection, pid: int) -> None:
    async with asyncio.timeout(10):
        while await (await watcher.execute(WAITING, (pid,))).fetchone() != (1,):  # noqa: ASYNC110  asks Postgres
            await asyncio.sleep(POLL_S)


def idle(connection: Connection) -> bool:
    return connection.info.transaction_status == TransactionStatus.IDLE


@pytest.mark.parametrize("how", ["a session", "an invocation", "a number"])
async def test_a_refused_batch_leaves_nothing(
    database: str, connection: Connection, events: Sequence[Recorded], how: str
) -> None:
    before = await dump(database)
    at = await checkpoints.load(connection, 0, EPOCH)
    async with connected(database) as listener:
        await listener.execute(f"LISTEN {CHANNEL}")
        for _ in range(7):  # also when statements have been prepared
            with pytest.raises(psycopg.Error) as caught:
                await store(connection, at, broken(events[10:], how))
            assert is_poison(caught.value)
            assert idle(connection)
        found = await refusal(connection, at, broken(events[10:], how))
        assert found is not None
        assert type(found) is type(caught.value)
        # What would be taken is not kept either.
        assert await refusal(connection, at, fold(events[10:], ())) is None
        assert idle(connection)
        assert await dump(database) == before
        assert await checkpoint(database) == 10
        assert await heard(listener) == []
        await store(connection, at, fold(events[10:], ()))
        assert await heard(listener) == [f"0 {events[-1].sequence}"]


@pytest.mark.parametrize("table", ["checkpoints", "event_log", "invocations", "sessions", "hubs"])
async def test_a_batch_cancelled_while_postgres_works_leaves_nothing(
    database: str, connection: Connection, events: Sequence[Recorded], table: str
) -> None:
    before = await dump(database)
    at = await checkpoints.load(connection, 0, EPOCH)
    async with connected(database) as admin, connected(database) as watcher:
        await watcher.execute(f"LISTEN {CHANNEL}")
        async with admin.transaction():
            await admin.execute(f"LOCK TABLE {table} IN EXCLUSIVE MODE")
            writing = asyncio.create_task(store(connection, at, fold(events[10:], ())))
            await waits(watcher, connection.info.backend_pid)
            writing.cancel()
            with pytest.raises(asyncio.CancelledError):
                await writing
            assert idle(connection)
            assert await dump(database) == before
            assert await checkpoint(database) == 10
        assert await heard(watcher) == []
        await store(connection, at, fold(events[10:], ()))
        assert await heard(watcher) == [f"0 {events[-1].sequence}"]


async def test_a_move_is_heard_when_it_is_committed_and_not_before(
    database: str, connection: Connection, events: Sequence[Recorded]
) -> None:
    at = await checkpoints.load(connection, 0, EPOCH)
    async with connected(database) as admin, connected(database) as listener:
        await listener.execute(f"LISTEN {CHANNEL}")
        async with admin.transaction():
            await admin.execute("LOCK TABLE hubs IN EXCLUSIVE MODE")
            writing = asyncio.create_task(store(connection, at, fold(events[10:30], ())))
            await waits(admin, connection.info.backend_pid)
            assert await heard(listener) == []
        await writing
        assert await heard(listener) == ["0 30"]


async def test_nothing_is_looked_for_in_a_batch_that_another_projector_has_written(
    database: str, connection: Connection, events: Sequence[Recorded]
) -> None:
    """A search that was overtaken ends as writing does: rows that are there already are no refusal."""
    stale = await checkpoints.load(connection, 0, EPOCH)
    async with connected(database) as other:
        await store(other, stale, fold(events[10:20], ()))
    before = await dump(database)
    batches: list[tuple[Checkpoint, Sequence[Recorded]]] = [(stale, events[10:20]), (stale, events[10:])]
    for at, batch in batches:
        with pytest.raises(Superseded):
            await refusal(connection, at, fold(batch, ()))
        assert idle(connection)
    assert await dump(database) == before
