"""Circuit breakers and retry budgets: when to stop asking somebody who does not answer, and how often to ask again.

Both are pure: time and jitter are arguments. A :class:`Breaker` is moved by probes only, one at a time, never by the
callers that it turns away: their outcomes may be unknown, come late, and blame overload as well as silence (ADR 0011).
:func:`keep` is the shell that probes. Knows neither NATS nor Postgres.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from typing import Literal, TypeAlias

import structlog

from events.errors import HublogError
from service.voice import Voice

FAILURES_MAX = 2  # probes that failed in a row; one may be this process's own pause
PROBE_EVERY_S = 1.0
PAUSE_FIRST_S = 0.5  # after a probe that failed; doubled up to the maximum while open, with jitter
PAUSE_MAX_S = 2.0

State: TypeAlias = Literal["closed", "open", "half_open"]
STATES: tuple[State, ...] = ("closed", "open", "half_open")

_log = structlog.get_logger(__name__)


class Breaker:
    """*Closed*, everybody passes. Enough failed probes in a row make it *open*: nobody passes. When its pause is over,
    it is *half open* for one probe: that closes it, or opens it again for longer.

    ``opened`` and ``refused`` are for metrics; ``on_open`` is called as it opens, not when it opens again.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.state: State = "closed"
        self.opened = 0
        self.refused = 0
        self.problem = ""  # what the last failed probe met
        self.on_open: Callable[[], None] = lambda: None
        self._failed_since_s: float | None = None  # when the first probe of this row of failures began
        self._failures = 0
        self._pause_s = PAUSE_FIRST_S

    @property
    def closed(self) -> bool:
        return self.state == "closed"

    def admits(self) -> bool:
        """Whether a caller may go on; one that may not is counted."""
        if self.state == "closed":
            return True
        self.refused += 1
        return False

    def why(self, now_s: float) -> str | None:
        """What to tell who is turned away; None while closed."""
        if self.state == "closed" or self._failed_since_s is None:
            return None
        return f"it has not answered for {now_s - self._failed_since_s:.0f} s: {self.problem}"

    def pause_s(self, jitter: float) -> float:
        """How long to wait before the next probe. ``jitter``: 0 to 1."""
        if self._failures == 0:
            return PROBE_EVERY_S
        return self._pause_s * (0.5 + jitter / 2)

    def probing(self) -> None:
        """A probe begins."""
        if self.state == "open":
            self.state = "half_open"

    def succeeded(self) -> bool:
        """The probe was answered. True: that closed it."""
        was, self.state = self.state, "closed"
        self._failures, self._failed_since_s, self._pause_s = 0, None, PAUSE_FIRST_S
        return was != "closed"

    def failed(self, began_s: float, problem: str) -> bool:
        """The probe that began then was not answered. True: that opened it."""
        self.problem = problem
        self._failures += 1
        if self._failed_since_s is None:
            self._failed_since_s = began_s
        if self.state == "half_open":
            self.state = "open"
            self._pause_s = min(self._pause_s * 2, PAUSE_MAX_S)
            return False
        if self._failures < FAILURES_MAX:
            return False
        self.state = "open"
        self.opened += 1
        self.on_open()
        return True


class RetryBudget:
    """A token bucket: ``rate`` repeats a second, ``burst`` at once. First attempts need none."""

    def __init__(self, rate: float, burst: float, now_s: float) -> None:
        self.refused = 0
        self._rate = rate
        self._burst = burst
        self._left = burst
        self._at_s = now_s

    def take(self, now_s: float) -> bool:
        """Whether one more repeat may be made now."""
        self._left = min(self._burst, self._left + (now_s - self._at_s) * self._rate)
        self._at_s = now_s
        if self._left < 1:
            self.refused += 1
            return False
        self._left -= 1
        return True


async def keep(breaker: Breaker, probe: Callable[[], Awaitable[object]]) -> None:
    """Probe for ever, so that it opens without a caller and closes without one. Ends by cancellation.

    ``probe`` is bounded in time, and raises a HublogError when it is not answered.
    """
    voice = Voice(_log.bind(circuit=breaker.name))
    while True:
        await asyncio.sleep(breaker.pause_s(random.random()))  # noqa: S311  jitter is no secret
        began_s = time.monotonic()
        breaker.probing()
        try:
            await probe()
        except HublogError as exc:
            if breaker.failed(began_s, exc.message):
                voice.say("warning", "circuit.opened", problem=exc.message)
        else:
            if breaker.succeeded():
                voice.say("info", "circuit.closed")
