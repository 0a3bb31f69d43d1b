"""``hublog wait``: nothing starts before the migration is through, and what is missing is said."""

import asyncio

import psycopg
import pytest
from structlog.testing import capture_logs

from events.errors import LogMissing, Misconfigured
from service.process import migrate, waiting
from service.settings import Settings
from service.up.nats_server import NatsServer
from tests.servers.processes import until

PATIENCE_S = 30.0


async def test_it_returns_once_both_halves_are_migrated(clean_nats: NatsServer, empty_database: str) -> None:
    environ = {"HUBLOG_NATS_URL": clean_nats.url, "HUBLOG_POSTGRES_DSN": empty_database}
    with capture_logs() as lines:
        waiter = asyncio.ensure_future(waiting.run(Settings.read(environ, "wait"), PATIENCE_S))
        await until(lambda: any(line["event"] == "waiting" for line in lines), what="it says what it waits for")
        assert not waiter.done()
        await migrate.run(Settings.read(environ, "migrate"))
        await asyncio.wait_for(waiter, PATIENCE_S)
    first = next(line for line in lines if line["event"] == "waiting")
    assert first["code"] == "misconfigured"
    assert "run `hublog migrate`" in first["why"]


async def test_a_process_without_postgres_waits_for_the_log_alone(clean_nats: NatsServer, empty_database: str) -> None:
    alone = Settings.read({"HUBLOG_NATS_URL": clean_nats.url}, "wait")
    with pytest.raises(LogMissing):
        await waiting.run(alone, 0)
    both = Settings.read({"HUBLOG_NATS_URL": clean_nats.url, "HUBLOG_POSTGRES_DSN": empty_database}, "wait")
    with pytest.raises(Misconfigured, match="at revision none"):
        await waiting.run(both, 0)
    await migrate.run(both)
    await waiting.run(alone, 0)
    await waiting.run(both, 0)


async def test_a_schema_of_the_next_release_is_no_reason_to_wait(clean_nats: NatsServer, database: str) -> None:
    """In a rolling upgrade, or after a rollback, a process of this release may start after the next's migration."""
    settings = Settings.read({"HUBLOG_NATS_URL": clean_nats.url, "HUBLOG_POSTGRES_DSN": database}, "wait")
    await migrate.run(settings)
    for revision in ("0001", "9999"):
        async with await psycopg.AsyncConnection.connect(database) as connection:
            await connection.execute("UPDATE alembic_version SET version_num = %s", [revision])
        if revision == "0001":
            with pytest.raises(Misconfigured, match="at revision 0001"):
                await waiting.run(settings, 0)
        else:
            await waiting.run(settings, 0)
