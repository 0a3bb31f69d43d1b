"""The root of ``hublog gateway``."""

from service.process.lifecycle import operable, stop_signal
from service.process.parts import nats_check, the_log
from service.settings import Settings


async def run(settings: Settings, index: int) -> None:
    """Serve until told to stop. Raises: Misconfigured, LogUnavailable, LogMissing, LogDrifted."""
    told_to_stop = stop_signal()
    node = settings.node_name(index)
    async with (
        the_log(settings, node) as log,
        operable(settings, "gateway", node, offset=index, told_to_stop=told_to_stop, checks={"nats": nats_check(log)}),
    ):
        await told_to_stop.wait()
