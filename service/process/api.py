"""The root of ``hublog api``."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

from projections.read import ReadModel
from service import VERSION
from service.admin import listening
from service.api.app import make_app
from service.api.server import Dispatcher, make_runner
from service.log.author import Author
from service.nodes.lease import LastRenewals
from service.process.access import make_door, measure_door
from service.process.health import NatsHealth, circuits, measure_circuits
from service.process.lifecycle import begin, operable
from service.process.managers import global_view, manager_factory
from service.process.measuring import measure_errors, measure_log
from service.process.parts import the_log
from service.process.postgres_health import PostgresHealth
from service.process.schema import require_schema
from service.process.tracing import traced
from service.sessions.hubs import Hubs
from service.settings import ADMIN_OFFSET_API, Settings
from service.telemetry import Metrics

INSTANCE = "api"


async def run(settings: Settings) -> None:
    """Answer until told to stop. Raises: Misconfigured, LogUnavailable, LogMissing, LogDrifted."""
    assert settings.postgres_dsn is not None
    dsn = settings.postgres_dsn.reveal()
    door = make_door(settings)
    told_to_stop = begin(settings, INSTANCE)
    await require_schema(dsn)
    async with (
        traced(settings, "api", INSTANCE) as traces,
        the_log(settings, INSTANCE, traces.tracing) as log,
        global_view(settings, log) as view,
    ):
        nats, postgres = NatsHealth(log), PostgresHealth(dsn, stale_after_s=settings.stale_after_s)
        hubs = Hubs(nats.guarded, manager_factory(settings, nats.guarded, Author(), view))
        renewals = LastRenewals(log)
        reads = ReadModel(dsn, log.partitions, guard=postgres.breaker)
        app = make_app(reads, hubs, renewals.at_us, version=VERSION, door=door, tracing=traces.tracing)
        runner = make_runner(app)
        checks = {**nats.checks(), **postgres.checks(), "staleness": postgres.staleness}
        async with (
            operable(
                settings,
                "api",
                INSTANCE,
                offset=ADMIN_OFFSET_API,
                told_to_stop=told_to_stop,
                checks=checks,
                details=lambda: {**circuits(nats.breaker, postgres.breaker), **postgres.details()},
            ) as metrics,
            _watching(renewals, nats.job, postgres.job),
            listening(runner, settings.host, settings.api_port, setting="HUBLOG_API_PORT"),
        ):
            measure_door(metrics, door)
            measure_circuits(metrics, nats.breaker, postgres.breaker)
            traces.measure(metrics)
            _measure(metrics, app)
            measure_log(metrics, log)
            await told_to_stop.wait()
        await hubs.shutdown()
        await reads.close()


def _measure(metrics: Metrics, app: Dispatcher) -> None:
    """Numbers that are kept anyway, made readable."""
    measure_errors(metrics, app.errors)
    metrics.counter(
        "hublog_api_requests_total",
        lambda: [({"status": str(status)}, count) for status, count in app.answered.items()],
    )
    metrics.histogram("hublog_api_request_duration_seconds", lambda: app.took)


@asynccontextmanager
async def _watching(renewals: LastRenewals, *jobs: Callable[[], Coroutine[Any, Any, None]]) -> AsyncIterator[None]:
    """The leases, seen once before the first answer and then, with the other jobs, for as long as anybody may ask."""
    await renewals.refresh()
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(job()) for job in (renewals.keep, *jobs)]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
