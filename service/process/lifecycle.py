"""What every process of the service does alike: its logs, its admin port, and stopping when told.

Owns the signals. It refuses to know the roles; each has a root of its own beside this file.
"""

import asyncio
import signal
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager

import structlog

from service import VERSION
from service.admin import Check, admin_app, serving_apart
from service.pulse import Pulse
from service.settings import Settings
from service.telemetry import Metrics, configure_logging

log = structlog.get_logger(__name__)


def begin(settings: Settings, instance: str) -> asyncio.Event:
    """The first thing that a root does: logs from here on, and an event that is set at the first SIGTERM or SIGINT.

    A second one ends the process at once, as if nobody listened.
    """
    configure_logging(settings.log_level, process=instance)
    loop = asyncio.get_running_loop()
    told = asyncio.Event()

    def tell() -> None:
        told.set()
        for sig in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(sig)

    for sig in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(sig, tell)
    return told


@asynccontextmanager
async def operable(
    settings: Settings,
    role: str,
    instance: str,
    *,
    offset: int,
    told_to_stop: asyncio.Event,
    checks: Mapping[str, Check],
    details: Callable[[], Mapping[str, object]] = dict,
) -> AsyncIterator[Metrics]:
    """Metrics and the admin port at base + ``offset``, until left. Raises: Misconfigured."""
    metrics = Metrics(role)
    labels = {"process": instance, "version": VERSION}
    metrics.gauge("hublog_build_info", lambda: [(labels, 1)])
    checks = {**checks, "draining": lambda: "told to stop" if told_to_stop.is_set() else None}
    pulse = Pulse()
    metrics.histogram("hublog_loop_lag_seconds", lambda: pulse.lag)
    app = admin_app(metrics, checks, details=details, pulse=pulse)
    pulse.start()
    try:
        port = settings.admin_port + offset
        async with serving_apart(app, settings.host, port, setting="HUBLOG_ADMIN_PORT", beside=pulse.watch):
            log.info("process_started", role=role, admin_port=port)
            yield metrics
    finally:
        pulse.stop()
        log.info("process_stopped", role=role)
