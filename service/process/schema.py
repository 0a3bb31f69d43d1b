"""The database as the roots that read or write it want it when they start: at this release's revision."""

import asyncio

import migrations
from events.errors import Misconfigured


async def require_schema(dsn: str) -> None:
    """Raises: Misconfigured where ``hublog migrate`` has to run first, ReadModelUnavailable."""
    found = await asyncio.to_thread(migrations.revision, dsn)
    if found != migrations.head():
        raise Misconfigured(
            f"the database is at revision {found or 'none'}, this release needs {migrations.head()}: "
            "run `hublog migrate`"
        )
