"""What a projector needs of the log. ``service.log.port.EventLog`` has it; so has a list in a test."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Protocol, Self

from events.envelope import Recorded
from events.ids import Epoch


class Source(Protocol):
    """The log, to read from. The methods are those of ``EventLog``; see there."""

    @property
    def epoch(self) -> Epoch: ...

    async def first_sequence(self, partition: int) -> int: ...

    async def last_sequence(self, partition: int) -> int: ...

    def read(self, subject: str, first: int, last: int) -> AsyncIterator[Recorded]: ...

    def follow(self, partition: int, after: int, *, batch_max: int = ...) -> AsyncIterator[list[Recorded]]: ...


class Ahead:
    """Follows a partition one batch ahead of who takes them, so that reading and writing overlap. Use as a context."""

    def __init__(self, batches: AsyncIterator[list[Recorded]]) -> None:
        self._batches = batches
        self._next: asyncio.Task[list[Recorded]] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        if self._next is not None:
            self._next.cancel()
            await asyncio.gather(self._next, return_exceptions=True)
        close: Any = getattr(self._batches, "aclose", None)
        if close is not None:
            await close()

    async def take(self, events_max: int) -> list[Recorded]:
        """What comes next, and what else has come by then, until there are ``events_max``. Empty: nothing came."""
        taken = await self._consume()
        while taken and len(taken) < events_max:
            following = self._start()
            await asyncio.sleep(0)  # what is there already comes within one turn of the loop
            if not following.done():
                break
            more = await self._consume()
            if not more:
                break
            taken = [*taken, *more]
        self._start()
        return taken

    @property
    def ready(self) -> bool:
        """Whether something has come already, so that :meth:`take` would not wait."""
        return self._next is not None and self._next.done()

    async def _consume(self) -> list[Recorded]:
        events = await self._start()
        self._next = None
        return events

    def _start(self) -> asyncio.Task[list[Recorded]]:
        if self._next is None:
            self._next = asyncio.create_task(_anext(self._batches))
        return self._next


async def _anext(batches: AsyncIterator[list[Recorded]]) -> list[Recorded]:
    return await anext(batches)
