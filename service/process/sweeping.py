"""The judge and the sweepers, as the projector process runs them: beside each projector, under its lock."""

from collections.abc import Callable, Coroutine
from typing import Any

from projections.read import ReadModel
from projections.runner import Projector
from service.admin import Check
from service.breaker import Breaker
from service.log.author import Author
from service.log.commands import CommandRunner, SessionAggregate
from service.log.jetstream import JetStreamLog
from service.log.port import EventLog
from service.nodes import judge, sweeper
from service.nodes.judge import Judge
from service.nodes.rows import StoredRows
from service.nodes.sweeper import Sweeper
from service.settings import Settings
from service.telemetry import Metrics

CONNECTIONS_MAX = 4  # to Postgres, for all partitions together
LATE_S = 15.0  # without a complete round, before the process says that it is not ready


class Sweeping:
    """One judge, and a sweeper per partition. ``jobs`` run until they are cancelled; then ``close``."""

    def __init__(
        self,
        settings: Settings,
        log: JetStreamLog,
        guarded: EventLog,
        projectors: list[Projector],
        dsn: str,
        postgres: Breaker,
    ) -> None:
        """``guarded``: the same log, where it is asked for many sessions at once."""
        author = Author()
        runner = CommandRunner(guarded, author, SessionAggregate())
        self._model = ReadModel(dsn, log.partitions, connections_max=CONNECTIONS_MAX, guard=postgres)
        rows = StoredRows(self._model, dsn)
        first = projectors[0]
        self.judge = Judge(log, rows, author, lambda: _reached(first) is not None, _elsewhere(first))
        self.sweepers = [
            Sweeper(
                projector.partition,
                guarded,
                rows,
                author,
                runner,
                _reached_by(projector),
                _elsewhere(projector),
                ttl_s=settings.session_ttl_s,
                max_age_s=settings.max_age_s,
            )
            for projector in projectors
        ]

    def jobs(self) -> list[Coroutine[Any, Any, None]]:
        return [self.judge.run(), *(one.run() for one in self.sweepers)]

    async def close(self) -> None:
        await self._model.close()

    def checks(self) -> dict[str, Check]:
        return {"leases": self._judging, "sweeper": self._sweeping}

    def measure(self, metrics: Metrics) -> None:
        """Numbers that are kept anyway, made readable."""
        labels = [(one, {"partition": str(one.partition)}) for one in self.sweepers]
        metrics.gauge("hublog_sweeper_age_seconds", lambda: [(by, one.age_s) for one, by in labels])
        metrics.counter(
            "hublog_sweeper_sessions_total",
            lambda: [({**by, "what": what}, one.done[what]) for one, by in labels for what in sweeper.DONE],
        )
        metrics.gauge("hublog_leases_age_seconds", lambda: self.judge.age_s)
        metrics.counter("hublog_nodes_lost_total", lambda: self.judge.lost)

    def _judging(self) -> str | None:
        if self.judge.age_s < judge.IDLE_LIMIT_S:
            return None
        return f"nobody has looked at the leases for {self.judge.age_s:.0f} s: {_why(self.judge.problem)}"

    def _sweeping(self) -> str | None:
        late = max(self.sweepers, key=lambda one: one.age_s)
        if late.age_s < LATE_S:
            return None
        return f"partition {late.partition} was last swept {late.age_s:.0f} s ago: {_why(late.problem)}"


def _why(problem: str | None) -> str:
    return problem or "the projector is not at work"


def _reached_by(projector: Projector) -> Callable[[], int | None]:
    return lambda: _reached(projector)


def _elsewhere(projector: Projector) -> Callable[[], bool]:
    return lambda: projector.state == "standing_by"


def _reached(projector: Projector) -> int | None:
    """The sequence that the rows reflect, where this process is the one at work."""
    if projector.state == "leading" and projector.checkpoint is not None:
        return projector.checkpoint.sequence
    return None
