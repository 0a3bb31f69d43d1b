"""The root of ``hublog wait``: stands in front of a process until ``hublog migrate`` is through.

It changes nothing. What it waits for is what the process would ask at its own start; where that has no Postgres,
neither has this. It refuses to know why something is missing: each change of the answer is said once.
"""

import asyncio
import time

import structlog

from events.errors import HublogError
from service.process.parts import the_log
from service.process.schema import require_schema
from service.settings import Settings

INSTANCE = "wait"
POLL_S = 1.0

log = structlog.get_logger(__name__)


async def run(settings: Settings, at_most_s: float) -> None:
    """Return once the log, and the database where one is set, are as this release needs them.

    Raises: Misconfigured, LogUnavailable, LogMissing, LogDrifted, ReadModelUnavailable: what was wrong to the last.
    """
    give_up_at = time.monotonic() + at_most_s
    said = ""
    while True:
        try:
            await _look(settings)
        except HublogError as error:
            if time.monotonic() >= give_up_at:
                raise
            if error.message != said:
                log.info("waiting", code=error.code, why=error.message)
                said = error.message
            await asyncio.sleep(POLL_S)
        else:
            return


async def _look(settings: Settings) -> None:
    if settings.postgres_dsn is not None:
        await require_schema(settings.postgres_dsn.reveal())
    async with the_log(settings, INSTANCE):
        pass
