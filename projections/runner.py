"""A projector: follows one partition of the log and keeps its read models up to date, whatever goes away meanwhile.

One is at work per partition; others stand by on an advisory lock (economy), and should two ever work at once, the
checkpoint moves for one of them only (safety). Owns batches, retries and what is parked. Makes no events, and knows
neither the log's driver nor what a row means.
"""

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal, LiteralString, NoReturn

import psycopg
import structlog

from events.envelope import Recorded
from events.errors import LogDamaged, LogRegressed, Misconfigured, Unavailable
from projections import checkpoint as checkpoints
from projections.batches import EVENTS_MAX, leading
from projections.checkpoint import Checkpoint, Connection
from projections.fold import BEHIND, Rows
from projections.source import Ahead, Source
from projections.write import Superseded
from projections.writer import Writer

READ_MAX = 2_500  # events asked of the log at a time
VERIFY_S = 60.0
STANDBY_S = 1.0  # how often a projector that stands by asks for the lock
RETRY_MIN_S, RETRY_MAX_S = 0.1, 5.0
PARKED_LOGGED_MAX = 20  # subjects named in log lines per batch
RATE_S = 5.0  # over which the rate is averaged

CONNECT_TIMEOUT_S = 5
STATEMENT_TIMEOUT_S = 120
IN_TRANSACTION_TIMEOUT_S = 30  # a projector that was stopped in the middle gives way to another
LOCK_CLASS = 0x6875626C  # "hubl"; the second half of the key is the partition
# A dead host is noticed, and its lock with it.
KEEPALIVE: dict[str, Any] = {
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
}

_LOCK: LiteralString = "SELECT pg_try_advisory_lock(%s, %s)"
_PARKED: LiteralString = "SELECT subject, count(*) FROM parked WHERE partition = %s GROUP BY subject"

OnBatch = Callable[[Sequence[Recorded], int], None]
State = Literal["starting", "standing_by", "leading", "retrying", "halted"]


class Projector:
    """One partition's projector. Its attributes are for metrics: plain, and only ever written here."""

    def __init__(
        self, dsn: str, source: Source, partition: int, *, log: Any = None, on_written: OnBatch | None = None
    ) -> None:
        """``on_written`` is called with the events of each transaction, and when that began (ns since 1970)."""
        self.partition = partition
        self.state: State = "starting"
        self.checkpoint: Checkpoint | None = None
        self.log_last = 0  # the last sequence of the log, as far as it is known
        self.events = 0  # written since start
        self.batches = 0
        self.parked = 0  # events that wait for a repair
        self.parked_subjects: set[str] = set()
        self.failures = 0  # times that Postgres or the log went away
        self.problem: str | None = None  # why it is retrying
        self.rate = 0.0  # events per second
        self._on_written = on_written
        self._dsn = dsn
        self._source = source
        self._log = (log or structlog.get_logger(__name__)).bind(partition=partition)
        self._level_at_s = time.time()  # when the rows were last known to have everything, or this began
        self._stored_at_s = 0.0  # when the last event in the rows was stored
        self._checked_at = 0.0
        self._rated_at = 0.0

    @property
    def lag(self) -> int:
        """Events stored and not yet in the rows."""
        return max(0, self.log_last - (self.checkpoint.sequence if self.checkpoint else 0))

    @property
    def lag_s(self) -> float:
        """For how long, at most, the oldest event that is not in the rows has been stored; by two clocks."""
        if not self.lag:
            return 0.0
        return max(0.0, time.time() - max(self._level_at_s, self._stored_at_s))

    def noticed(self, last: int) -> None:
        """The log was seen to end at this sequence."""
        if not self.lag:
            self._level_at_s = time.time()
        self.log_last = max(self.log_last, last)

    async def run(self) -> NoReturn:
        """Project for ever. Raises: LogDamaged (the log regressed or is missing), Misconfigured (no schema)."""
        pause_s = RETRY_MIN_S
        while True:
            before = self.batches
            try:
                await self._attempt()
            except LogDamaged as exc:
                self.state, self.problem = "halted", exc.wire()
                self._log.critical("projection.halted", code=exc.code, problem=exc.message, hint=exc.hint)
                raise
            except (psycopg.errors.UndefinedTable, psycopg.errors.UndefinedColumn) as exc:
                error = Misconfigured("the schema is not the one of this release; run `hublog migrate`")
                self.state, self.problem = "halted", error.wire()
                raise error from exc
            except (psycopg.Error, Unavailable, Superseded) as exc:
                pause_s = RETRY_MIN_S if self.batches > before else min(pause_s * 2, RETRY_MAX_S)
                self._retrying(exc)
            await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))  # noqa: S311  jitter, not a secret

    def _retrying(self, exc: BaseException) -> None:
        self.failures += 1
        problem = str(exc).split("\n", 1)[0]
        if self.problem != problem:  # once for each new trouble, not for each attempt
            self._log.warning("projection.interrupted", problem=problem)
        self.state, self.problem = "retrying", problem

    async def _attempt(self) -> NoReturn:
        async with await psycopg.AsyncConnection.connect(
            self._dsn,
            autocommit=True,
            connect_timeout=CONNECT_TIMEOUT_S,
            application_name=f"hublog projector {self.partition}",
            **KEEPALIVE,
        ) as connection:
            # What a crash of Postgres takes back, rows and checkpoint together, is projected again: the log is the
            # truth. To wait for the disk would cost the log, on the same one, the more.
            await connection.execute("SET synchronous_commit = off")
            await connection.execute(f"SET statement_timeout = '{STATEMENT_TIMEOUT_S}s'")
            await connection.execute(f"SET idle_in_transaction_session_timeout = '{IN_TRANSACTION_TIMEOUT_S}s'")
            await self._await_turn(connection)
            await self._lead(connection)

    async def _await_turn(self, connection: Connection) -> None:
        """Until the lock is ours. Asked for again and again: a query that waited for it would hold back vacuum."""
        while True:
            answer = await (await connection.execute(_LOCK, (LOCK_CLASS, self.partition))).fetchone()
            if answer is not None and answer[0]:
                return
            if self.state != "standing_by":
                self._log.info("projection.standing_by")
            self.state = "standing_by"
            await asyncio.sleep(STANDBY_S)

    async def _lead(self, connection: Connection) -> NoReturn:
        at = await checkpoints.load(connection, self.partition, self._source.epoch)
        self.checkpoint = at
        await self._verify(at)
        await self._load_parked(connection)
        after = await self._start(at)
        self._log.info("projection.leading", sequence=at.sequence, lag=self.lag, parked=self.parked)
        self.state, self.problem = "leading", None
        writer = Writer(connection, at, self.parked_subjects, self._written)
        async with Ahead(self._source.follow(self.partition, after, batch_max=READ_MAX)) as ahead:
            try:
                await self._follow(connection, ahead, writer)
            finally:
                await writer.abandon()

    async def _follow(self, connection: Connection, ahead: Ahead, writer: Writer) -> NoReturn:
        expected = writer.at.sequence + 1 if writer.at.sequence else None
        waiting: list[Recorded] = []  # for the rest of their atomic batch
        while True:
            came = await ahead.take(EVENTS_MAX)
            if came and expected is not None and came[0].sequence != expected:
                raise LogRegressed(f"sequence {came[0].sequence} came where {expected} should be: events are lost")
            if came:
                expected = came[-1].sequence + 1
                self.noticed(came[-1].sequence)
                waiting = waiting + came if waiting else came
            while count := leading(waiting):
                batch, waiting = waiting[:count], waiting[count:]
                await writer.put(batch)
            if not ahead.ready:
                await writer.finish()
                await self._look(connection, writer.at, idle=not came)

    async def _start(self, at: Checkpoint) -> int:
        """The sequence to follow after: the checkpoint, or for new read models the beginning of what the log has."""
        if at.sequence:
            return at.sequence
        first = await self._source.first_sequence(self.partition)
        if first > 1:
            self._log.warning("projection.starts_late", first=first, lost=first - 1)
        return first - 1

    def _written(self, at: Checkpoint, rows: Rows, began_ns: int) -> None:
        self.checkpoint = at
        self.batches += 1
        self._stored_at_s = rows.log[-1].event.stored_at_us / 1e6
        self._count(len(rows.log))
        if rows.parked:
            self._note_parked(rows)
        if self._on_written is not None:
            self._on_written([row.event for row in rows.log], began_ns)

    def _note_parked(self, rows: Rows) -> None:
        """Say it loudly: once per subject, and not more often than a person can read."""
        self.parked += len(rows.parked)
        first = [row for row in rows.parked if row.code != BEHIND]
        for row in first[:PARKED_LOGGED_MAX]:
            self._log.error(
                "projection.parked", sequence=row.seq, subject=row.subject, code=row.code, problem=row.reason
            )
        if len(first) > PARKED_LOGGED_MAX:
            self._log.error("projection.parked_more", subjects=len(first) - PARKED_LOGGED_MAX)

    async def _load_parked(self, connection: Connection) -> None:
        answer = await connection.execute(_PARKED, (self.partition,))
        counts: dict[str, int] = dict(await answer.fetchall())
        self.parked_subjects, self.parked = set(counts), sum(counts.values())

    async def _look(self, connection: Connection, at: Checkpoint, *, idle: bool) -> None:
        """When nothing came, whether there really is nothing; now and then, whether the log is still the one it was."""
        now = time.monotonic()
        if now - self._checked_at > VERIFY_S:
            await self._verify(at)
        if not idle:
            return
        self._count(0)
        try:
            self.log_last = await self._source.last_sequence(self.partition)
        except Unavailable:
            return  # then the rows are as old as they say, and following goes on by itself
        if self.log_last == at.sequence:
            await checkpoints.confirm(connection, at, time.monotonic() - now)

    async def _verify(self, at: Checkpoint) -> None:
        """That the log still has what was projected. Raises: LogRegressed, Unavailable."""
        self._checked_at = time.monotonic()
        if at.epoch != self._source.epoch:
            raise LogRegressed(f"the rows are of epoch {at.epoch}, the log is of {self._source.epoch}")
        self.log_last = await self._source.last_sequence(self.partition)
        if self.log_last < at.sequence:
            raise LogRegressed(f"the log ends at {self.log_last}, the rows reflect {at.sequence}")
        if not at.sequence:
            return
        # Nothing comes when the log has aged out since; what follows it is still checked to be without a gap.
        async for event in self._source.read(f"ev.{self.partition}.>", at.sequence, at.sequence):
            if checkpoints.digest(event) != at.hash:
                raise LogRegressed(f"event {at.sequence} is not the one that was projected")

    def _count(self, events: int) -> None:
        now = time.monotonic()
        passed_s = now - self._rated_at
        self.events += events
        share = min(1.0, passed_s / RATE_S)
        self.rate = self.rate * (1 - share) + (events / passed_s) * share if passed_s else self.rate
        self._rated_at = now
