"""A gateway's canary: made from the settings, and its numbers."""

from events.ids import Position
from projections.read.progress import reach
from service.log.author import Author
from service.log.jetstream import JetStreamLog
from service.log.port import EventLog
from service.nodes.canary import LEGS, Canary
from service.nodes.lease import Lease
from service.settings import Settings
from service.telemetry import Metrics


def make_canary(settings: Settings, lease: Lease, commands: EventLog, log: JetStreamLog, author: Author) -> Canary:
    """``commands`` is the log as clients' commands reach it, so that a canary is refused where they are."""
    dsn = settings.postgres_dsn

    async def projected(position: Position, timeout_s: float) -> None:
        assert dsn is not None
        await reach(dsn.reveal(), position, timeout_s)

    return Canary(
        lease.node,
        lambda: lease.incarnation,
        commands,
        log,
        author,
        projected if dsn is not None else None,
        every_s=settings.canary_every_s,
    )


def measure_canary(metrics: Metrics, canary: Canary) -> None:
    """Numbers that are kept anyway, made readable."""
    metrics.gauge(
        "hublog_canary_leg_seconds",
        lambda: [
            ({"partition": str(song.partition), "leg": leg}, seconds)
            for song in canary.last
            for leg, seconds in song.legs.items()
        ],
    )
    metrics.counter("hublog_canaries_total", lambda: canary.songs)
    metrics.counter("hublog_canaries_failed_total", lambda: [({"leg": leg}, canary.failures[leg]) for leg in LEGS])
