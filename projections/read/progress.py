"""Waiting until the read model covers a position: one listening connection for however many wait.

Owns that connection and the waiters. A notification that was lost, or a listener that is down, costs time, never truth:
whoever waits also looks every ``LOOK_S``.
"""

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, LiteralString

import psycopg

from events.errors import EpochMismatch, PositionNotReached, ReadModelUnavailable
from events.ids import Epoch, Position
from projections.checkpoint import CHANNEL

LOOK_S = 0.25
CONNECT_TIMEOUT_S = 5
RETRY_S = 1.0
IDLE_S = 60.0  # the listener goes when nobody has waited for this long

_CHECKPOINT = "SELECT epoch, sequence FROM checkpoints WHERE partition = %(partition)s"

Rows = Callable[[LiteralString, Mapping[str, object]], Awaitable[list[tuple[Any, ...]]]]


def hang_up(connection: psycopg.AsyncConnection[Any]) -> None:
    """Let go of a connection at once, whatever waits on it: it ends with an error.

    Surprising because cancelling a statement would not do: psycopg then asks the server to cancel it, and where that is
    silent waits for 10 s.
    """
    if connection.closed:
        return
    with contextlib.suppress(OSError), socket.fromfd(connection.fileno(), socket.AF_UNIX, socket.SOCK_STREAM) as line:
        line.shutdown(socket.SHUT_RDWR)


async def reach(dsn: str, position: Position, timeout_s: float) -> None:
    """Return once the rows reflect ``position``, seen on a connection of its own that is closed afterwards.

    For who asks rarely. Raises: PositionNotReached, ReadModelUnavailable.
    """
    opened: list[psycopg.AsyncConnection[Any]] = []
    looking = asyncio.create_task(_reach(dsn, position, opened))
    try:
        done, _ = await asyncio.wait((looking,), timeout=timeout_s)
    finally:
        if not looking.done():
            for connection in opened:
                hang_up(connection)
            looking.cancel()
    if not done:
        raise PositionNotReached(f"the read model did not come to {position} within {timeout_s:g} s")
    try:
        looking.result()
    except psycopg.Error as exc:
        raise ReadModelUnavailable(f"Postgres does not answer: {str(exc).splitlines()[0]}") from exc


async def _reach(dsn: str, position: Position, opened: list[psycopg.AsyncConnection[Any]]) -> None:
    async with await psycopg.AsyncConnection.connect(
        dsn, autocommit=True, connect_timeout=CONNECT_TIMEOUT_S, application_name="hublog canary"
    ) as connection:
        opened.append(connection)
        await connection.execute(f"LISTEN {CHANNEL}")
        while True:
            row = await (await connection.execute(_CHECKPOINT, {"partition": position.partition})).fetchone()
            if row is not None and row[0] != position.epoch:
                raise ReadModelUnavailable(f"the read models are of the log {row[0]}, not {position.epoch}")
            if row is not None and row[1] >= position.sequence:
                return
            async for _ in connection.notifies(timeout=LOOK_S, stop_after=1):
                pass


class Progress:
    """Who waits for which partition, woken by ``NOTIFY hublog_projected, '<partition> <sequence>'``."""

    def __init__(self, dsn: str, rows: Rows) -> None:
        self._dsn = dsn
        self._rows = rows
        self._moved: dict[int, asyncio.Event] = {}
        self._waiting = 0
        self._listener: asyncio.Task[None] | None = None

    async def wait_for(self, position: Position, timeout_s: float) -> Position:
        """See ``ReadModel.wait_for``."""
        clock = asyncio.get_running_loop().time
        give_up_at = clock() + timeout_s
        if self._listener is None or self._listener.done():
            self._listener = asyncio.create_task(self._listen())
        self._waiting += 1
        try:
            while True:
                moved = self._moved.setdefault(position.partition, asyncio.Event())
                reached = await self._reached(position)
                if reached.sequence >= position.sequence:
                    return reached
                left_s = give_up_at - clock()
                if left_s <= 0:
                    raise PositionNotReached(f"the read model is at {reached}, not at {position}", reached=str(reached))
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(moved.wait(), min(left_s, LOOK_S))
        finally:
            self._waiting -= 1

    async def close(self) -> None:
        if self._listener is not None:
            self._listener.cancel()
            await asyncio.gather(self._listener, return_exceptions=True)

    async def _reached(self, position: Position) -> Position:
        rows = await self._rows(_CHECKPOINT, {"partition": position.partition})
        if not rows:
            raise ReadModelUnavailable(f"partition {position.partition} has no checkpoint: no projector has run yet")
        epoch, sequence = rows[0]
        if epoch != position.epoch:
            raise EpochMismatch(f"{position} is not of this log, which is {epoch}")
        return Position(Epoch(epoch), position.partition, sequence)

    async def _listen(self) -> None:
        """Until nobody waits any more. Without the connection, waiters look by themselves."""
        idle = False
        while not idle:
            try:
                async with await psycopg.AsyncConnection.connect(
                    self._dsn, autocommit=True, application_name="hublog wait"
                ) as connection:
                    await connection.execute(f"LISTEN {CHANNEL}")
                    while not idle:
                        async for notice in connection.notifies(timeout=IDLE_S):
                            self._wake(notice.payload)
                        idle = self._waiting == 0
            except psycopg.Error:
                await asyncio.sleep(RETRY_S)

    def _wake(self, payload: str) -> None:
        partition = payload.split(" ", 1)[0]
        moved = self._moved.pop(int(partition), None) if partition.isdecimal() else None
        if moved is not None:
            moved.set()
