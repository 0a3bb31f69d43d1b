"""A log over another one: passes everything on. For those that stand in front of a log and refuse some of it."""

from collections.abc import AsyncIterator, Iterable, Sequence

from events.envelope import NewEvent, Recorded
from events.ids import Epoch
from service.log.port import Done, EventLog, Stored
from service.log.tally import Tally


class LogOver:
    """An :class:`EventLog` that is another one, until a subclass says otherwise."""

    def __init__(self, log: EventLog) -> None:
        self._log = log

    @property
    def epoch(self) -> Epoch:
        return self._log.epoch

    @property
    def partitions(self) -> int:
        return self._log.partitions

    @property
    def tally(self) -> Tally:
        return self._log.tally

    async def append(self, subject: str, events: Sequence[NewEvent], expected: int) -> int:
        return await self._log.append(subject, events, expected)

    def submit(self, subject: str, event: NewEvent, done: Done) -> None:
        self._log.submit(subject, event, done)

    async def publish(self, subject: str, event: NewEvent) -> Stored:
        return await self._log.publish(subject, event)

    async def last(self, subject: str) -> Recorded | None:
        return await self._log.last(subject)

    async def last_many(self, subjects: Iterable[str], up_to: int | None = None) -> dict[str, Recorded]:
        return await self._log.last_many(subjects, up_to)

    async def last_sequence(self, partition: int) -> int:
        return await self._log.last_sequence(partition)

    async def first_sequence(self, partition: int) -> int:
        return await self._log.first_sequence(partition)

    def read(self, subject: str, first: int, last: int) -> AsyncIterator[Recorded]:
        return self._log.read(subject, first, last)

    def follow(self, partition: int, after: int, *, batch_max: int = 1_000) -> AsyncIterator[list[Recorded]]:
        return self._log.follow(partition, after, batch_max=batch_max)
