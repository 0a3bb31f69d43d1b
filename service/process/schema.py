"""The database as the roots that read or write it want it when they start: at this release's revision, or later."""

import asyncio

import migrations
from events.errors import Misconfigured


async def require_schema(dsn: str) -> None:
    """Raises: Misconfigured where ``hublog migrate`` has to run first, ReadModelUnavailable.

    A revision that this release does not know is one of the next: a rolling upgrade migrates first, and a process of
    this release that is started anew meanwhile, or after a rollback, goes on with it.
    """
    found = await asyncio.to_thread(migrations.revision, dsn)
    if found is None or (found != migrations.head() and found in migrations.known()):
        raise Misconfigured(
            f"the database is at revision {found or 'none'}, this release needs {migrations.head()}: "
            "run `hublog migrate`"
        )
