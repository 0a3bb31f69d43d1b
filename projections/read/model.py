"""The way to Postgres for questions: a small pool of read-only connections, and waiting for a position.

Owns connections and their errors. Knows no question.
"""

import asyncio
import contextlib
import time
from collections.abc import Mapping
from typing import Any, LiteralString, Protocol

import psycopg
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from events.errors import InvalidQuery, ReadModelUnavailable
from events.ids import Position, partition_of
from projections.read.progress import Progress

CONNECTIONS_MAX = 8
CONNECT_TIMEOUT_S = 5
POOL_TIMEOUT_S = 2.0  # how long a question waits for a connection
CHECKED_S = POOL_TIMEOUT_S + 1.0  # and for one that answers
STATEMENT_TIMEOUT_S = 10


class Guard(Protocol):
    """Whether Postgres may be asked; it is turned off while it is known not to answer."""

    def admits(self) -> bool: ...

    def why(self, now_s: float) -> str | None: ...


class ReadModel:
    """The read models of one installation. Opened on first use; safe for any number of tasks of one loop."""

    def __init__(
        self, dsn: str, partitions: int, *, connections_max: int = CONNECTIONS_MAX, guard: Guard | None = None
    ) -> None:
        self.partitions = partitions
        self._guard = guard
        self._dsn = dsn
        self._connections_max = connections_max
        self._pool: AsyncConnectionPool[psycopg.AsyncConnection[tuple[Any, ...]]] | None = None
        self._progress: Progress | None = None
        self._opening = asyncio.Lock()
        self._asking: set[asyncio.Task[list[tuple[Any, ...]]]] = set()

    def partition(self, hub: str) -> int:
        return partition_of(hub, self.partitions)

    async def rows(self, query: LiteralString, values: Mapping[str, object]) -> list[tuple[Any, ...]]:
        """One statement, in its own snapshot. Raises: ReadModelUnavailable, InvalidQuery."""
        if self._guard is not None and not self._guard.admits():
            raise ReadModelUnavailable(f"Postgres is not asked, {self._guard.why(time.monotonic())}")
        pool = self._pool or await self._open()
        try:
            async with asyncio.timeout(CHECKED_S) as limit:
                asking = asyncio.create_task(self._ask(pool, query, values, limit))
                self._asking.add(asking)
                asking.add_done_callback(self._asking.discard)
                try:
                    # Surprising because a server that hangs does not let psycopg cancel either: that takes it 10 s, for
                    # which nobody has to wait.
                    return await asyncio.shield(asking)
                finally:
                    asking.cancel()
        except TimeoutError as exc:
            raise ReadModelUnavailable("Postgres does not answer in time") from exc

    async def _ask(
        self,
        pool: AsyncConnectionPool[psycopg.AsyncConnection[tuple[Any, ...]]],
        query: LiteralString,
        values: Mapping[str, object],
        limit: asyncio.Timeout,
    ) -> list[tuple[Any, ...]]:
        try:
            async with pool.connection() as connection, connection.cursor(binary=True) as cursor:
                if not limit.expired():
                    limit.reschedule(asyncio.get_running_loop().time() + STATEMENT_TIMEOUT_S + CHECKED_S)
                await cursor.execute(query, values)
                return await cursor.fetchall()
        except (psycopg.DataError, UnicodeEncodeError) as exc:
            raise InvalidQuery(f"a parameter cannot be a name or number here: {_first_line(exc)}") from exc
        except (psycopg.OperationalError, psycopg.InterfaceError, PoolTimeout) as exc:
            raise ReadModelUnavailable(f"Postgres does not answer: {_first_line(exc)}") from exc

    async def answer(self, query: LiteralString, partition: int, values: Mapping[str, object]) -> list[tuple[Any, ...]]:
        """The rows of a question to one partition: at least one, which states the checkpoint.

        Raises: ReadModelUnavailable (also when nothing was ever projected), InvalidQuery.
        """
        rows = await self.rows(query, {**values, "partition": partition})
        if not rows:
            raise ReadModelUnavailable(f"partition {partition} has no checkpoint: no projector has run yet")
        return rows

    async def wait_for(self, position: Position, timeout_s: float) -> Position:
        """Return once the read model covers ``position``, with how far it is.

        Raises: EpochMismatch, PositionNotReached (``reached`` in its details), ReadModelUnavailable.
        """
        if self._progress is None:
            self._progress = Progress(self._dsn, self.rows)
        return await self._progress.wait_for(position, timeout_s)

    async def close(self) -> None:
        if self._progress is not None:
            await self._progress.close()
        for asking in self._asking:
            asking.cancel()
        if self._pool is not None:
            await self._pool.close()
        self._pool = self._progress = None

    async def _open(self) -> AsyncConnectionPool[psycopg.AsyncConnection[tuple[Any, ...]]]:
        async with self._opening:
            if self._pool is None:
                pool = AsyncConnectionPool(
                    self._dsn,
                    min_size=1,
                    max_size=self._connections_max,
                    open=False,
                    timeout=POOL_TIMEOUT_S,
                    configure=_configure,
                    check=AsyncConnectionPool.check_connection,
                    kwargs={
                        "autocommit": True,
                        "connect_timeout": CONNECT_TIMEOUT_S,
                        "application_name": "hublog read",
                    },
                    name="hublog-read",
                )
                await pool.open()
                self._pool = pool
            return self._pool


async def _configure(connection: psycopg.AsyncConnection[tuple[Any, ...]]) -> None:
    await connection.execute("SET default_transaction_read_only = on")
    await connection.execute("SET timezone = 'UTC'")
    await connection.execute(f"SET statement_timeout = '{STATEMENT_TIMEOUT_S}s'")


def _first_line(exc: BaseException) -> str:
    with contextlib.suppress(IndexError):
        return str(exc).splitlines()[0]
    return type(exc).__name__
