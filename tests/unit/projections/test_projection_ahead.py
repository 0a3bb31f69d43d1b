"""Reading one batch ahead: everything once, in order, what is there already at once."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from events.envelope import Recorded
from projections.source import Ahead


def event(number: int) -> Recorded:
    return Recorded("ev.0.chat.all", number, 0, b"{}")


class Feed:
    """Batches as they are put in; None ends in an error."""

    def __init__(self, *batches: list[int]) -> None:
        self.queue: asyncio.Queue[list[int] | None] = asyncio.Queue()
        self.closed = False
        for batch in batches:
            self.queue.put_nowait(batch)

    async def follow(self) -> AsyncIterator[list[Recorded]]:
        try:
            while (batch := await self.queue.get()) is not None:
                yield [event(number) for number in batch]
            raise LookupError("the log is gone")
        finally:
            self.closed = True


async def a_few_turns() -> None:
    """Of the loop, so that tasks that can go on do."""
    for _ in range(3):
        await asyncio.sleep(0)


async def numbers(ahead: Ahead, events_max: int = 100) -> list[int]:
    return [taken.sequence for taken in await ahead.take(events_max)]


async def test_what_is_there_is_taken_together_up_to_the_limit() -> None:
    feed = Feed([1, 2], [3, 4], [5, 6], [7])
    async with Ahead(feed.follow()) as ahead:
        assert await numbers(ahead, 3) == [1, 2, 3, 4]
        assert await numbers(ahead) == [5, 6, 7]
        assert not ahead.ready
        feed.queue.put_nowait([8])
        assert await numbers(ahead) == [8]
    assert feed.closed


async def test_the_next_batch_is_read_meanwhile() -> None:
    feed = Feed([1])
    async with Ahead(feed.follow()) as ahead:
        assert await numbers(ahead) == [1]
        feed.queue.put_nowait([2])
        await a_few_turns()
        assert ahead.ready
        assert feed.queue.empty()
        assert await numbers(ahead) == [2]


async def test_nothing_came_is_said_at_once() -> None:
    feed = Feed([], [1], [], [2])
    async with Ahead(feed.follow()) as ahead:
        assert await numbers(ahead) == []
        assert await numbers(ahead) == [1]
        assert await numbers(ahead) == [2]


async def test_errors_come_after_what_was_read_before_them() -> None:
    feed = Feed([1])
    async with Ahead(feed.follow()) as ahead:
        assert await numbers(ahead) == [1]
        feed.queue.put_nowait(None)
        with pytest.raises(LookupError):
            await ahead.take(1)


async def test_leaving_while_it_waits_closes_the_source() -> None:
    feed = Feed()
    ahead = Ahead(feed.follow())
    async with ahead:
        taking = asyncio.create_task(ahead.take(1))
        await a_few_turns()
        taking.cancel()
        await asyncio.gather(taking, return_exceptions=True)
    assert feed.closed
