"""Who writes events: the one place that reads the clock and makes ids for them."""

import os
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import lru_cache

import uuid_utils

from events import codec
from events.envelope import NewEvent
from events.ids import EventId, SessionId, session_id
from service.telemetry.tracing import CURRENT


def wall_clock_us() -> int:
    """Microseconds since 1970, UTC."""
    return time.time_ns() // 1_000


def timestamp(at_us: int) -> str:
    """``2026-11-21T10:00:00.000000Z``."""
    second, micros = divmod(at_us, 1_000_000)
    return f"{_second(second)}.{micros:06d}Z"


@lru_cache(maxsize=2)  # hot path: formatting a date costs a tenth of an invocation, and many fall into one second
def _second(second: int) -> str:
    return datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")


class Author:
    """Stamps events with an id and a time. Tests give it a clock of their own."""

    __slots__ = ("_now_us",)

    def __init__(self, now_us: Callable[[], int] = wall_clock_us) -> None:
        self._now_us = now_us

    def new_id(self) -> EventId:
        """A UUIDv7: ids made later sort later."""
        return EventId(str(uuid_utils.uuid7()))

    def new_session(self) -> SessionId:
        return session_id(os.urandom(16))

    def now_us(self) -> int:
        return self._now_us()

    def write(
        self,
        event: codec.Event,
        *,
        actor: str,
        event_id: EventId | None = None,
        correlation: str | None = None,
        causation: str | None = None,
    ) -> NewEvent:
        """``event`` as the log takes it, in the trace of the running task; a new id unless one is given."""
        return codec.encode(
            event,
            id=event_id or self.new_id(),
            at=timestamp(self._now_us()),
            actor=actor,
            correlation=correlation,
            causation=causation,
            traceparent=CURRENT.get(),
        )
