"""How old the read models are, as readiness sees it, on a real Postgres."""

from typing import LiteralString

import psycopg

from events.ids import Epoch
from projections import checkpoint
from service.process.postgres_health import PostgresHealth

EPOCH = Epoch("abcd")
OLD: LiteralString = "UPDATE checkpoints SET as_of = now() - interval '90 s' WHERE partition = 0"


async def test_nothing_is_late_before_the_first_event_and_old_rows_are(database: str) -> None:
    health = PostgresHealth(database, stale_after_s=60)
    async with await psycopg.AsyncConnection.connect(database, autocommit=True) as connection:
        await health.probe()
        assert health.staleness() is None, "no checkpoint at all"
        made = await checkpoint.load(connection, 0, EPOCH)
        await health.probe()
        assert health.staleness() is None, "a checkpoint that nothing was projected to"
        await checkpoint.confirm(connection, made, 0.0)
        await checkpoint.load(connection, 1, EPOCH)
        await health.probe()
        assert health.staleness() is None, "an empty log, and all of it projected"
        await connection.execute(OLD)
        await health.probe()
        assert str(health.staleness()).startswith("the read models are 90 s old, more than 60 s")
    assert health._connection is not None
    await health._connection.close()
