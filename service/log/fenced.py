"""A log that takes commands only while its node may give them.

Owns one question, asked at the first sending of each write: does the node hold its lease, and is it still the one under
which this command was begun? Reading goes on, and so do repeats of what was sent before, since that may be stored.
"""

import asyncio
from collections.abc import Callable, Sequence
from contextvars import ContextVar

from events.envelope import NewEvent
from events.errors import Suspended
from service.log.over import LogOver
from service.log.port import Done, EventLog, Stored

# The incarnation under which the command of this task was read from its client; None for what is the node's own doing.
BEGUN_UNDER: ContextVar[str | None] = ContextVar("begun_under", default=None)


class FencedLog(LogOver):
    """An :class:`EventLog` whose writes raise Suspended while ``suspended()``, or when ``incarnation()`` is not the one
    in :data:`BEGUN_UNDER`: a command must not outlive the life of the node that took it, even where it had to wait.
    """

    def __init__(self, log: EventLog, suspended: Callable[[], bool], incarnation: Callable[[], str]) -> None:
        super().__init__(log)
        self._suspended = suspended
        self._incarnation = incarnation

    async def append(self, subject: str, events: Sequence[NewEvent], expected: int) -> int:
        self._check()
        return await self._log.append(subject, events, expected)

    def submit(self, subject: str, event: NewEvent, done: Done) -> None:
        if self._refused():
            asyncio.get_running_loop().call_soon(done, _refusal())
            return
        self._log.submit(subject, event, done)

    async def publish(self, subject: str, event: NewEvent) -> Stored:
        self._check()
        return await self._log.publish(subject, event)

    def _check(self) -> None:
        if self._refused():
            raise _refusal()

    def _refused(self) -> bool:
        begun = BEGUN_UNDER.get()
        return self._suspended() or (begun is not None and begun != self._incarnation())


def _refusal() -> Suspended:
    return Suspended("this node has not renewed its lease in time")
