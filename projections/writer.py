"""Writes one batch after another, and folds the next while Postgres is busy with the one before.

Owns what is parked, and the search for an event whose rows Postgres refuses. Knows no log.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import TypeAlias

import msgspec
import psycopg

from events.envelope import Recorded
from events.errors import LogDamaged
from projections.checkpoint import Checkpoint, Connection
from projections.fold import BEHIND, Rows, fold
from projections.write import is_poison, refusal, store

# (how far the rows are now, what was written, when its writing began: nanoseconds since 1970)
OnWritten: TypeAlias = Callable[[Checkpoint, Rows, int], None]


class _Batch(msgspec.Struct):
    events: Sequence[Recorded]
    began_ns: int
    rows: Rows
    refolded: bool = False

    @property
    def first_parked(self) -> set[str]:
        return {row.subject for row in self.rows.parked if row.code != BEHIND}


class Writer:
    """One connection's batches, in order. ``parked``: subjects that wait for a repair, as of ``at``."""

    def __init__(
        self,
        connection: Connection,
        at: Checkpoint,
        parked: set[str],
        on_written: OnWritten,
    ) -> None:
        self.at = at
        self.parked = parked
        self._connection = connection
        self._on_written = on_written
        self._poison: set[int] = set()
        self._busy: asyncio.Task[None] | None = None
        self._batch: _Batch | None = None

    async def put(self, events: Sequence[Recorded]) -> None:
        """Write a batch that directly follows the one before. Returns when that one is written.

        Raises, here or in :meth:`finish`: Superseded, psycopg.Error.
        """
        before = self._batch
        held = self.parked if before is None else self.parked | before.first_parked
        rows = fold(events, held, self._poison)
        await self.finish()
        if before is not None and before.refolded:
            rows = fold(events, self.parked, self._poison)
        self._batch = _Batch(events, time.time_ns(), rows)
        self._busy = asyncio.create_task(self._write(self._batch))
        # Postgres is given its work before anything else is folded.
        await asyncio.sleep(0)

    async def finish(self) -> None:
        """Wait until everything put is written."""
        busy, self._busy, self._batch = self._busy, None, None
        if busy is not None:
            try:
                await busy
            except asyncio.CancelledError:
                await _end(busy)
                raise

    async def abandon(self) -> None:
        """Give up what is not written yet."""
        busy, self._busy = self._busy, None
        if busy is not None:
            await _end(busy)

    async def _write(self, batch: _Batch) -> None:
        """One transaction. An event whose rows Postgres refuses is found and parked; the others are written."""
        while True:
            try:
                self.at = await store(self._connection, self.at, batch.rows)
            except psycopg.Error as exc:
                if not is_poison(exc):
                    raise
                self._poison.add(await self._find_poison(batch.events))
                batch.rows = fold(batch.events, self.parked, self._poison)
                batch.refolded = True
                continue
            self.parked |= batch.first_parked
            self._on_written(self.at, batch.rows, batch.began_ns)
            return

    async def _find_poison(self, events: Sequence[Recorded]) -> int:
        """The sequence of the first event that Postgres refuses: the end of the shortest prefix that it refuses."""
        accepted, refused = 0, len(events)
        while refused - accepted > 1:
            middle = (accepted + refused) // 2
            rows = fold(events[:middle], self.parked, self._poison)
            if await refusal(self._connection, self.at, rows) is None:
                accepted = middle
            else:
                refused = middle
        found = events[refused - 1]
        if found.sequence in self._poison:
            raise LogDamaged(f"Postgres refuses event {found.sequence} even when it is parked")
        return found.sequence


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
