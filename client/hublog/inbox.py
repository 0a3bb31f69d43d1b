"""What was received and waits for its handlers, in order; bounded by not reading on.

Owns the two marks. Above ``READ_ON_BYTES`` the connection is read on only while calls wait for their answers (a handler
may be waiting for one); above ``READ_MAX_BYTES`` not at all until handlers have caught up. A service that is not read
cuts the connection in the end; the client then resumes from what it took. Nothing is dropped here.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

READ_ON_BYTES = 1024 * 1024
READ_MAX_BYTES = 32 * 1024 * 1024
ITEM_BYTES = 512  # what an item costs beside its arguments, roughly

T = TypeVar("T")


class Inbox(Generic[T]):
    """Many may put; one takes."""

    def __init__(self) -> None:
        self._items: deque[tuple[T, int]] = deque()
        self._changed = asyncio.Event()
        self._look = asyncio.Event()
        self.bytes = 0

    def put(self, item: T, size: int = 0) -> None:
        self._items.append((item, size + ITEM_BYTES))
        self.bytes += size + ITEM_BYTES
        self._changed.set()

    async def take(self) -> T:
        while not self._items:
            self._changed.clear()
            await self._changed.wait()
        item, size = self._items.popleft()
        self.bytes -= size
        self._look.set()
        return item

    async def room(self, answers_awaited: Callable[[], bool]) -> None:
        """Wait until reading on is right. Looked at again when an item is taken, and at :meth:`look_again`."""
        while self.bytes >= READ_ON_BYTES and (self.bytes >= READ_MAX_BYTES or not answers_awaited()):
            self._look.clear()
            await self._look.wait()

    def look_again(self) -> None:
        """Whether answers are awaited has changed."""
        self._look.set()
