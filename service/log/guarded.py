"""A log that refuses commands at once while NATS is known not to answer.

Owns that one refusal, made before anything is sent, so it always may say that nothing was stored. What was sent before
the circuit opened keeps its own way to an outcome, and stays unknown where it is. Delivery, leases and repairs do not
come through here: they have their own patience, and must find NATS again by themselves; so has following.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Iterable, Sequence

from events.envelope import NewEvent, Recorded
from events.errors import LogUnavailable
from service.breaker import Breaker
from service.log.over import LogOver
from service.log.port import Done, EventLog, Stored


class GuardedLog(LogOver):
    """An :class:`EventLog` whose every question raises LogUnavailable while ``breaker`` is not closed."""

    def __init__(self, log: EventLog, breaker: Breaker) -> None:
        super().__init__(log)
        self._breaker = breaker

    async def append(self, subject: str, events: Sequence[NewEvent], expected: int) -> int:
        self._check()
        return await self._log.append(subject, events, expected)

    def submit(self, subject: str, event: NewEvent, done: Done) -> None:
        if self._breaker.admits():
            self._log.submit(subject, event, done)
        else:
            asyncio.get_running_loop().call_soon(done, self._refusal())

    async def publish(self, subject: str, event: NewEvent) -> Stored:
        self._check()
        return await self._log.publish(subject, event)

    async def last(self, subject: str) -> Recorded | None:
        self._check()
        return await self._log.last(subject)

    async def last_many(self, subjects: Iterable[str], up_to: int | None = None) -> dict[str, Recorded]:
        self._check()
        return await self._log.last_many(subjects, up_to)

    async def last_sequence(self, partition: int) -> int:
        self._check()
        return await self._log.last_sequence(partition)

    async def first_sequence(self, partition: int) -> int:
        self._check()
        return await self._log.first_sequence(partition)

    def read(self, subject: str, first: int, last: int) -> AsyncIterator[Recorded]:
        self._check()
        return self._log.read(subject, first, last)

    def _check(self) -> None:
        if not self._breaker.admits():
            raise self._refusal()

    def _refusal(self) -> LogUnavailable:
        return LogUnavailable(f"nothing was sent to NATS, {self._breaker.why(time.monotonic())}")
