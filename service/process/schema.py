"""The database as the roots that read or write it want it: answering, and at this release's revision."""

import asyncio

import psycopg

import migrations
from events.errors import Misconfigured
from service.admin import Check

CONNECT_TIMEOUT_S = 2


async def require_schema(dsn: str) -> None:
    """Raises: Misconfigured where ``hublog migrate`` has to run first, ReadModelUnavailable."""
    found = await asyncio.to_thread(migrations.revision, dsn)
    if found != migrations.head():
        raise Misconfigured(
            f"the database is at revision {found or 'none'}, this release needs {migrations.head()}: "
            "run `hublog migrate`"
        )


def postgres_check(dsn: str) -> Check:
    """Asks on a connection of its own: a pool that is busy is not a server that is away."""

    async def check() -> str | None:
        try:
            connection = await psycopg.AsyncConnection.connect(dsn, connect_timeout=CONNECT_TIMEOUT_S)
            async with connection:
                await connection.execute("SELECT 1")
        except psycopg.Error as exc:
            return f"Postgres does not answer (HUBLOG_POSTGRES_DSN): {type(exc).__name__}"
        return None

    return check
