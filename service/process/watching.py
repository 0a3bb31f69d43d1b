"""What the projector process asks now and then, so that its metrics are true: the size of each stream, and how many
sessions the read models hold. It asks the log also while Postgres is away, so that the lag is seen to grow."""

import asyncio
import time
from collections.abc import Iterator

import structlog

from events.errors import HublogError
from projections.read import ReadModel
from projections.read.hubs import sessions_by_state
from projections.runner import Projector
from service.log.jetstream import JetStreamLog, StreamSize
from service.telemetry import Metrics

LOOK_EVERY_S = 5.0

_log = structlog.get_logger(__name__)


class Watching:
    """Looks every ``LOOK_EVERY_S``; what cannot be seen is not exported until it is seen again."""

    def __init__(self, log: JetStreamLog, projectors: list[Projector], reads: ReadModel) -> None:
        self._log = log
        self._projectors = projectors
        self._reads = reads
        self._sizes: dict[int, StreamSize] = {}
        self._sessions: dict[str, int] = {}
        self._failing: set[str] = set()

    async def run(self) -> None:
        """Ends by cancellation."""
        while True:
            for projector in self._projectors:
                await self._look_at_stream(projector)
            await self._count_sessions()
            await asyncio.sleep(LOOK_EVERY_S)

    async def _look_at_stream(self, projector: Projector) -> None:
        number = projector.partition
        try:
            size = self._sizes[number] = await self._log.size(number)
        except HublogError as error:
            self._sizes.pop(number, None)
            self._say(f"stream {number}", error)
        else:
            self._failing.discard(f"stream {number}")
            projector.noticed(size.last)

    async def _count_sessions(self) -> None:
        try:
            self._sessions = await sessions_by_state(self._reads)
        except HublogError as error:
            self._sessions = {}
            self._say("read models", error)
        else:
            self._failing.discard("read models")

    def _say(self, what: str, error: HublogError) -> None:
        if what not in self._failing:
            self._failing.add(what)
            _log.info("watch.failed", what=what, code=error.code)

    def measure(self, metrics: Metrics) -> None:
        metrics.gauge("hublog_sessions", lambda: [({"state": one}, count) for one, count in self._sessions.items()])
        metrics.gauge("hublog_stream_bytes", lambda: [(by, size.bytes) for by, size in self._each()])
        metrics.gauge("hublog_stream_events", lambda: [(by, size.messages) for by, size in self._each()])
        metrics.gauge("hublog_stream_last_sequence", lambda: [(by, size.last) for by, size in self._each()])
        metrics.gauge("hublog_stream_first_age_seconds", lambda: [(by, _age_s(size)) for by, size in self._each()])

    def _each(self) -> Iterator[tuple[dict[str, str], StreamSize]]:
        for number, size in self._sizes.items():
            yield {"partition": str(number)}, size


def _age_s(size: StreamSize) -> float:
    return max(0.0, time.time() - size.first_at_us / 1e6) if size.first_at_us is not None else 0.0
