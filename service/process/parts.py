"""The part that every root connects alike: the log."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from service.log.jetstream import JetStreamLog, jetstream_log
from service.settings import Settings
from service.telemetry.tracing import OFF, Tracing


@asynccontextmanager
async def the_log(settings: Settings, name: str, tracing: Tracing = OFF) -> AsyncIterator[JetStreamLog]:
    """The log as ``hublog migrate`` made it. Raises: LogUnavailable, LogMissing, LogDrifted."""
    assert settings.nats_url is not None
    log = await jetstream_log(
        settings.nats_url.reveal(),
        name=name,
        partitions=settings.partitions,
        max_age_s=settings.max_age_s,
        duplicate_window_s=settings.duplicate_window_s,
        replicas=settings.nats_replicas,
        tracing=tracing,
    )
    try:
        yield log
    finally:
        await log.close()
