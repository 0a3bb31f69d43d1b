"""The read models are a function of the log: any batches, and any range written again, give the plain fold."""

import asyncio
from collections.abc import Sequence

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from events.envelope import Recorded
from events.ids import Epoch
from projections import checkpoint as checkpoints
from projections.checkpoint import Connection
from projections.fold import fold
from projections.write import Superseded, store
from tests.servers.histories import History
from tests.servers.plain_fold import PlainFold
from tests.servers.read_models import dump

EPOCH = Epoch("k7qd")
TABLES = "event_log, sessions, memberships, groups, hubs, invocations, nodes, checkpoints, parked"


async def write(connection: Connection, events: Sequence[Recorded]) -> None:
    at = await checkpoints.load(connection, 0, EPOCH)
    parked = await connection.execute("SELECT DISTINCT subject FROM parked")
    await store(connection, at, fold(events, {subject for (subject,) in await parked.fetchall()}))


async def rewind(connection: Connection, events: Sequence[Recorded], to: int) -> None:
    """As nobody should: the checkpoint goes back, so that a range is written again."""
    digest = checkpoints.digest(events[to - 1]) if to else b""
    await connection.execute("UPDATE checkpoints SET sequence = %s, hash = %s", (to, digest))


def plain(events: Sequence[Recorded]) -> dict[str, object]:
    model = PlainFold()
    for event in events:
        model.take(event)
    return model.tables()


@given(
    seed=st.integers(0, 2**32),
    steps=st.integers(1, 120),
    cuts=st.lists(st.integers(1, 40), min_size=1, max_size=6),
    again=st.tuples(st.floats(0, 1), st.floats(0, 1)),
)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_batches_and_any_replay_give_the_plain_fold(
    database: str, seed: int, steps: int, cuts: list[int], again: tuple[float, float]
) -> None:
    events = History(seed).steps(steps).events
    asyncio.run(write_and_write_again(database, events, cuts, again))


async def write_and_write_again(dsn: str, events: list[Recorded], cuts: list[int], again: tuple[float, float]) -> None:
    expected = plain(events)
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        await connection.execute(f"TRUNCATE {TABLES}")  # one database for all examples
        await write_all(connection, events, cuts)
        assert await dump(dsn) == expected
        first, last = sorted(int(share * len(events)) for share in again)
        await rewind(connection, events, first)
        if first < last:
            await write(connection, events[first:last])
        assert await dump(dsn) == expected
        await rewind(connection, events, 0)
        await write_all(connection, events, cuts[::-1])
        assert await dump(dsn) == expected


async def write_all(connection: Connection, events: list[Recorded], cuts: list[int]) -> None:
    start = turn = 0
    while start < len(events):
        size = cuts[turn % len(cuts)]
        await write(connection, events[start : start + size])
        start, turn = start + size, turn + 1


async def test_a_checkpoint_elsewhere_refuses_the_batch(database: str) -> None:
    events = History(1).steps(300).events
    async with await psycopg.AsyncConnection.connect(database, autocommit=True) as connection:
        old = await checkpoints.load(connection, 0, EPOCH)
        await write(connection, events[:20])
        before = await dump(database)
        for stale in (old, checkpoints.Checkpoint(0, Epoch("aaaa"), 20, checkpoints.digest(events[19]))):
            with pytest.raises(Superseded):
                await store(connection, stale, fold(events[20:], ()))
        assert await dump(database) == before == plain(events[:20])
