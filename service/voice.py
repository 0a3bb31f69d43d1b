"""Log lines about something that comes and goes: one for each change, and none of a kind more often than once a minute.

Owns the counting of what was swallowed, which is said with the next line of that kind.
"""

import time
from collections.abc import Callable
from typing import Any, Literal

SAID_EVERY_S = 60.0


class Voice:
    """Of one thing. ``log`` is a bound structlog logger; each event is said at most once in ``SAID_EVERY_S``."""

    def __init__(self, log: Any, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._log = log
        self._clock = clock
        self._said_s: dict[str, float] = {}
        self._swallowed: dict[str, int] = {}

    def say(self, level: Literal["info", "warning"], event: str, **fields: object) -> None:
        """A line, or one more that was swallowed: ``not_said`` of the next one of the same event counts them."""
        now_s = self._clock()
        said_s = self._said_s.get(event)
        if said_s is not None and now_s - said_s < SAID_EVERY_S:
            self._swallowed[event] = self._swallowed.get(event, 0) + 1
            return
        self._said_s[event] = now_s
        swallowed = self._swallowed.pop(event, 0)
        more = {"not_said": swallowed} if swallowed else {}
        self._log.log(LEVELS[level], event, **fields, **more)


LEVELS = {"info": 20, "warning": 30}
