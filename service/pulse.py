"""Whether the event loop of a process turns, told to somebody who is not on it.

Owns a beat on the loop, its lateness, and the words for a loop that stands still: since when, and at which line. What
is read here from another thread is one float. Refuses to know who asks.
"""

import asyncio
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType

import structlog

from service.telemetry import Buckets

BEAT_S = 0.25
BLOCKED_AFTER_S = 5.0  # a full look of the collector, a large frame or a busy machine are shorter
SAID_AFTER_S = 2.0  # what is worth a line with the place, though nobody has to end the process for it
LOOK_S = 0.5
FRAMES_MAX = 4
LAG_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)

_log = structlog.get_logger(__name__)


class Pulse:
    """Of the loop and the thread that it is made on; beats from :meth:`start` to :meth:`stop`.

    ``lag``: by how much each beat was late, in seconds.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.lag = Buckets(LAG_S)
        self._clock = clock
        self._thread = threading.get_ident()
        self._loop = asyncio.get_running_loop()
        self._due_s = clock()
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        self._due_s = self._clock() + BEAT_S
        self._timer = self._loop.call_later(BEAT_S, self._beat)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def late_s(self) -> float:
        """How long the next beat is overdue; from any thread."""
        return max(0.0, self._clock() - self._due_s)

    def problem(self) -> str | None:
        """Why the process is not alive, if so; from any thread."""
        late_s = self.late_s()
        if late_s < BLOCKED_AFTER_S:
            return None
        return f"the event loop has not turned for {late_s:.1f} s; it is in {self.where()}"

    def where(self) -> str:
        """The innermost lines that the loop's thread is at, without any value."""
        frame: FrameType | None = sys._current_frames().get(self._thread)  # noqa: SLF001  the only way to ask
        places: list[str] = []
        while frame is not None and len(places) < FRAMES_MAX:
            places.append(f"{frame.f_code.co_filename}:{frame.f_lineno} ({frame.f_code.co_name})")
            frame = frame.f_back
        return ", called by ".join(places)

    async def watch(self) -> None:
        """Say it in the log, once, when the loop stands still, and how long it did. Runs on another loop, for ever."""
        blocked = False
        worst_s = 0.0
        while True:
            before_s = self._clock()
            await asyncio.sleep(LOOK_S)
            late_s = self.late_s()
            if self._clock() - before_s > LOOK_S + SAID_AFTER_S / 2:
                continue  # this thread stood still as well: the whole process was stopped
            if late_s >= SAID_AFTER_S:
                worst_s = late_s
                if not blocked:
                    _log.error("loop.blocked", late_s=round(late_s, 1), where=self.where())
                blocked = True
            elif blocked:
                _log.warning("loop.turns_again", blocked_s=round(worst_s, 1))
                blocked = False

    def _beat(self) -> None:
        now_s = self._clock()
        self.lag.add(max(0.0, now_s - self._due_s))
        self._due_s = now_s + BEAT_S
        self._timer = self._loop.call_later(BEAT_S, self._beat)
