"""How late events come to sockets: from their writing by whoever wrote them to the last write of them here.

By two clocks, where two machines are involved.
"""

from collections.abc import Callable
from datetime import datetime
from time import time

from service.telemetry import Buckets

LAG_S = (
    *(0.0002, 0.0003, 0.0005, 0.00075, 0.001, 0.0015, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.02, 0.03, 0.05),
    *(0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300),
)


class Lag:
    """A histogram of times that are read from texts like ``2026-11-21T10:00:00.000000Z``."""

    __slots__ = ("_clock", "_second", "_text", "buckets")

    def __init__(self, clock: Callable[[], float] = time) -> None:
        self._clock = clock
        self._text = ""
        self._second = 0.0
        self.buckets = Buckets(LAG_S)

    def add(self, at: str) -> None:
        """Hot path: the date and the second are read once for all events that share them. No time is no measurement."""
        try:
            if at[:19] != self._text:
                self._second = datetime.fromisoformat(f"{at[:19]}+00:00").timestamp()
                self._text = at[:19]
            late_s = self._clock() - self._second - int(at[20:26]) * 1e-6
        except ValueError:
            return
        self.buckets.add(late_s if late_s > 0 else 0.0)
