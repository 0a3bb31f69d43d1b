"""The root of ``hublog projector``."""

from service.process.lifecycle import begin, operable
from service.process.parts import nats_check, the_log
from service.process.schema import postgres_check, require_schema
from service.settings import ADMIN_OFFSET_PROJECTOR, Settings

INSTANCE = "projector"


async def run(settings: Settings) -> None:
    """Project until told to stop. Raises: Misconfigured, LogUnavailable, LogMissing, LogDrifted."""
    assert settings.postgres_dsn is not None
    dsn = settings.postgres_dsn.reveal()
    told_to_stop = begin(settings, INSTANCE)
    await require_schema(dsn)
    async with (
        the_log(settings, INSTANCE) as log,
        operable(
            settings,
            "projector",
            INSTANCE,
            offset=ADMIN_OFFSET_PROJECTOR,
            told_to_stop=told_to_stop,
            checks={"nats": nats_check(log), "postgres": postgres_check(dsn)},
        ),
    ):
        await told_to_stop.wait()
