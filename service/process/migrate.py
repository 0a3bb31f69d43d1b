"""The root of ``hublog migrate``: the only one that creates or changes streams and tables."""

import asyncio
import os

import migrations
from service.log.jetstream import migrate_log
from service.settings import Settings

EPOCH_RANDOM_BYTES = 3


async def run(settings: Settings) -> tuple[str, str]:
    """Bring schema and log to what this release needs; gives the schema's revision and the log's epoch.

    Raises: Misconfigured, LogDrifted, LogUnavailable, ReadModelUnavailable.
    """
    assert settings.nats_url is not None
    assert settings.postgres_dsn is not None
    revision = await asyncio.to_thread(migrations.upgrade, settings.postgres_dsn.reveal())
    epoch = await migrate_log(
        settings.nats_url.reveal(),
        random=os.urandom(EPOCH_RANDOM_BYTES),
        partitions=settings.partitions,
        max_age_s=settings.max_age_s,
        duplicate_window_s=settings.duplicate_window_s,
        replicas=settings.nats_replicas,
    )
    return revision, epoch
