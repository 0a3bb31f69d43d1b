"""The root of ``hublog projector``: one projector and one sweeper per partition, and the judge of leases."""

import asyncio

from events.errors import LogDamaged
from projections.read import ReadModel
from projections.runner import Projector
from service.admin import Check
from service.process.batches import Batches
from service.process.health import NatsHealth, circuits, measure_circuits
from service.process.lifecycle import begin, operable
from service.process.measuring import measure_log
from service.process.parts import the_log
from service.process.postgres_health import PostgresHealth
from service.process.schema import require_schema
from service.process.sweeping import Sweeping
from service.process.tracing import traced
from service.process.watching import Watching
from service.settings import ADMIN_OFFSET_PROJECTOR, Settings
from service.telemetry import Metrics

INSTANCE = "projector"


async def run(settings: Settings) -> None:
    """Project until told to stop. Raises: Misconfigured, LogUnavailable, LogMissing, LogDrifted."""
    assert settings.postgres_dsn is not None
    dsn = settings.postgres_dsn.reveal()
    told_to_stop = begin(settings, INSTANCE)
    await require_schema(dsn)
    async with (
        traced(settings, "projector", INSTANCE) as traces,
        the_log(settings, INSTANCE, traces.tracing) as log,
    ):
        batches = [Batches(number, traces.tracing) for number in range(log.partitions)]
        projectors = [Projector(dsn, log, one.partition, on_written=one.written) for one in batches]
        nats, postgres = NatsHealth(log), PostgresHealth(dsn, stale_after_s=settings.stale_after_s)
        reads = ReadModel(dsn, log.partitions, connections_max=1, guard=postgres.breaker)
        watching = Watching(log, projectors, reads)
        sweeping = Sweeping(settings, log, nats.guarded, projectors, dsn, postgres.breaker)
        checks = {
            **nats.checks(),
            **postgres.checks(),
            **{f"partition {projector.partition}": _check(projector) for projector in projectors},
            **sweeping.checks(),
        }
        async with (
            asyncio.TaskGroup() as group,
            operable(
                settings,
                "projector",
                INSTANCE,
                offset=ADMIN_OFFSET_PROJECTOR,
                told_to_stop=told_to_stop,
                checks=checks,
                details=lambda: {**circuits(nats.breaker, postgres.breaker), **postgres.details()},
            ) as metrics,
        ):
            _measure(metrics, projectors, batches)
            traces.measure(metrics)
            sweeping.measure(metrics)
            measure_circuits(metrics, nats.breaker, postgres.breaker)
            watching.measure(metrics)
            measure_log(metrics, log)
            tasks = [group.create_task(_project(projector)) for projector in projectors]
            jobs = (nats.job(), postgres.job(), *sweeping.jobs(), watching.run())
            tasks += [group.create_task(job) for job in jobs]
            await told_to_stop.wait()
            for task in tasks:
                task.cancel()
        await sweeping.close()
        await reads.close()


async def _project(projector: Projector) -> None:
    """A halted partition has said so loudly, and keeps the process from being ready. Starting anew would not help it,
    and the other partitions go on."""
    try:
        await projector.run()
    except LogDamaged as exc:
        projector.problem = exc.wire()


def _check(projector: Projector) -> Check:
    def check() -> str | None:
        if projector.state in {"leading", "standing_by"}:
            return None
        return f"{projector.state}: {projector.problem}" if projector.problem else projector.state

    return check


def _by(one: Batches) -> dict[str, str]:
    return {"partition": str(one.partition)}


def _measure(metrics: Metrics, projectors: list[Projector], batches: list[Batches]) -> None:
    """Numbers that are kept anyway, made readable."""
    labels = [(projector, {"partition": str(projector.partition)}) for projector in projectors]
    # Who stands by does not know.
    metrics.gauge(
        "hublog_projection_lag_seconds", lambda: [(by, p.lag_s) for p, by in labels if p.state != "standing_by"]
    )
    metrics.gauge("hublog_projection_lag_events", lambda: [(by, p.lag) for p, by in labels if p.state != "standing_by"])
    metrics.gauge("hublog_projection_leading", lambda: [(by, int(p.state == "leading")) for p, by in labels])
    metrics.gauge("hublog_projection_parked_events", lambda: [(by, p.parked) for p, by in labels])
    metrics.histogram("hublog_projection_delay_seconds", lambda: [(_by(one), one.delay) for one in batches])
    metrics.counter("hublog_projection_events_total", lambda: [(by, p.events) for p, by in labels])
    metrics.counter("hublog_projection_batches_total", lambda: [(by, p.batches) for p, by in labels])
    metrics.counter("hublog_projection_interruptions_total", lambda: [(by, p.failures) for p, by in labels])
