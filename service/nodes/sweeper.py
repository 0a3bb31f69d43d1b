"""Brings to an end what nobody else will: sessions of lost nodes, overdue ones, and events about to age out.

One per partition, in the projector process, at work while that holds the partition's lock. The read models say who is
owed something, and are late by nature; the log decides. Every command names the connection of the row, so a session
that has resumed elsewhere meanwhile is not touched. Knows neither leases (``service.nodes.judge``) nor SQL.
"""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Literal, TypeAlias

import msgspec
import psycopg
import structlog

from events import codec, session
from events.envelope import Recorded
from events.errors import Conflict, HublogError, Refused, UnreadableEvent, UpgradeRequired
from events.ids import HubName
from events.subjects import HubSubjects
from projections.read.sweeping import Owed
from service.log.author import Author
from service.log.commands import CommandRunner, Known
from service.log.port import EventLog
from service.nodes.rows import Rows

ROUND_S = 1.0
AGAIN_S = 10.0  # a lost incarnation is swept again: what it had sent may have come late
CARRY_EVERY_MAX_S = 600.0
CARRIES_PER_MAX_AGE = 100
PARALLEL = 64  # commands under way
ACTOR = "system:sweeper"

Done: TypeAlias = Literal["detached", "closed", "expired", "carried", "forgotten", "skipped"]
DONE: tuple[Done, ...] = ("detached", "closed", "expired", "carried", "forgotten", "skipped")
Page = Callable[[Owed | None], Awaitable[list[Owed]]]
# What to do with a session of which this much is known; None: nothing.
Choose = Callable[[Owed, Known[session.State] | None], session.Command | None]

_log = structlog.get_logger(__name__)


class _Lost(msgspec.Struct):
    """A lost incarnation: swept once the rows reflect ``horizon``, the end of this partition when it was heard of."""

    last_renewal_us: int
    horizon: int
    swept_s: float | None = None


class Sweeper:
    """One partition's. ``reached``: the sequence that the rows reflect, None while this process does not write them;
    ``elsewhere``: another one does, and sweeps. Attributes are for metrics and readiness.
    """

    def __init__(
        self,
        partition: int,
        log: EventLog,
        rows: Rows,
        author: Author,
        runner: CommandRunner[session.State, session.Command],
        reached: Callable[[], int | None],
        elsewhere: Callable[[], bool],
        *,
        ttl_s: float,
        max_age_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.partition = partition
        self.done: Counter[Done] = Counter()
        self.problem: str | None = None
        self._log = log
        self._rows = rows
        self._author = author
        self._runner = runner
        self._reached = reached
        self._elsewhere = elsewhere
        self._ttl_us = int(ttl_s * 1e6)
        self._half_age_us = int(max_age_s * 1e6 / 2)
        self._carry_every_s = min(CARRY_EVERY_MAX_S, max_age_s / CARRIES_PER_MAX_AGE)
        self._clock = clock
        self._completed_s = clock()
        self._carried_s: float | None = None
        self._lost: dict[str, _Lost] = {}
        self._heard_seq = 0  # of partition 0
        self._written = 0  # the last sequence that this sweeper has appended
        self._subjects: dict[str, HubSubjects] = {}

    @property
    def age_s(self) -> float:
        """Since the last complete round, or since it was another process' duty."""
        return self._clock() - self._completed_s

    async def run(self) -> None:
        """Sweep for ever; what cannot be done stays owed. Ends by cancellation."""
        while True:
            try:
                await self.round()
            except (HublogError, psycopg.Error) as exc:
                self._troubled(exc)
            await asyncio.sleep(ROUND_S)

    async def round(self) -> None:
        """Everything that is owed now. Raises: HublogError and psycopg.Error when the log or Postgres is away."""
        reached = self._reached()
        if reached is None:
            if self._elsewhere():
                self._completed_s = self._clock()
            return
        if reached < self._written:
            # The rows still show what was just dealt with; the projector's lag is its own alarm.
            return
        before = self.done.copy()
        await self._hear()
        await self._sweep_lost(reached)
        await self._expire()
        await self._renew()
        self._completed_s, self.problem = self._clock(), None
        if done := self.done - before:
            _log.info("sweep.done", partition=self.partition, **{str(what): count for what, count in done.items()})

    async def _hear(self) -> None:
        """Which incarnations are lost, and where this partition ended when that was heard."""
        heard = await self._rows.lost(self._heard_seq)
        if not heard:
            return
        horizon = await self._log.last_sequence(self.partition)
        for life in heard:
            self._lost.setdefault(life.incarnation, _Lost(life.last_renewal_us, horizon))
        self._heard_seq = heard[-1].seq

    async def _sweep_lost(self, reached: int) -> None:
        now_s = self._clock()
        due = [
            incarnation
            for incarnation, lost in self._lost.items()
            if lost.horizon <= reached and (lost.swept_s is None or now_s - lost.swept_s >= AGAIN_S)
        ]
        if not due:
            return

        def end(row: Owed, _known: object) -> session.Command:
            if not row.resumable:
                return session.Close("node_lost", row.connection)
            # It was there when it opened, whatever was seen of the lease since.
            last_seen_us = max(self._lost[row.incarnation].last_renewal_us, row.opened_at_us or 0)
            return session.Detach(row.connection, "node_lost", last_seen_us)

        await self._each(lambda after: self._rows.attached(self.partition, due, after), end)
        for incarnation in due:
            self._lost[incarnation].swept_s = now_s

    async def _expire(self) -> None:
        before_us = self._author.now_us() - self._ttl_us
        await self._each(
            lambda after: self._rows.overdue(self.partition, before_us, after),
            lambda row, _known: session.Close("expired", row.connection),
        )

    async def _renew(self) -> None:
        """Now and then: write again what the log would soon forget, and let go of what it has forgotten."""
        now_s = self._clock()
        if self._carried_s is not None and now_s - self._carried_s < self._carry_every_s:
            return
        before_us = self._author.now_us() - self._half_age_us
        old = await self._rows.sequence_before(self.partition, before_us)
        first = await self._log.first_sequence(self.partition)
        await self._forget(first)

        def carry(row: Owed, known: Known[session.State] | None) -> session.Command | None:
            # Without an event there is nothing to carry, and a newer one than the row's needs no carrying.
            return session.Carry() if known is not None and known.sequence == row.seq else None

        if old >= first:
            await self._each(lambda after: self._rows.ageing(self.partition, old, after), carry)
        self._carried_s = now_s

    async def _forget(self, first: int) -> None:
        """Sessions whose last event is no longer in the log have no state to decide on: close their rows alone."""
        async for page in _pages(lambda after: self._rows.ageing(self.partition, first - 1, after)):
            subjects = [self._subject(row) for row in page]
            found = await self._log.last_many(subjects)
            gone = [row for row, subject in zip(page, subjects, strict=True) if subject not in found]
            # The rows may be late, and so may a replica: the leader has the last word.
            gone = [row for row in gone if await self._log.last(self._subject(row)) is None]
            if not gone:
                continue
            count = await self._rows.forget(self.partition, gone)
            self.done["forgotten"] += count
            _log.warning("sweep.forgotten", partition=self.partition, sessions=count, first=first)

    async def _each(self, pages: Page, choose: Choose) -> None:
        """Run what ``choose`` says for each session, many at a time. Raises: what made it stop."""
        async for page in _pages(pages):
            found = await self._log.last_many([self._subject(row) for row in page])
            waiting = iter(page)
            failures: list[HublogError] = []
            async with asyncio.TaskGroup() as group:
                for _ in range(min(PARALLEL, len(page))):
                    group.create_task(self._work(waiting, found, choose, failures))
            if failures:
                raise failures[0]

    async def _work(
        self, waiting: Iterator[Owed], found: dict[str, Recorded], choose: Choose, failures: list[HublogError]
    ) -> None:
        """One of several that share a page, until it is done or somebody fails."""
        for row in waiting:
            if failures:
                return
            try:
                await self._one(row, found.get(self._subject(row)), choose)
            except HublogError as exc:
                failures.append(exc)

    async def _one(self, row: Owed, last: Recorded | None, choose: Choose) -> None:
        """One session. Raises: Unavailable and its kin; what is wrong with this session alone is counted."""
        try:
            known = Known(codec.session_state(last), last.sequence) if last is not None else None
            command = choose(row, known)
            if command is None:
                return
            if known is not None and isinstance(command, session.Carry):
                await self._carry(row, known)
                return
            executed = await self._runner.execute(self._subject(row), command, actor=ACTOR, hint=lambda: known)
        except (Refused, Conflict, UpgradeRequired, UnreadableEvent) as exc:
            self.done["skipped"] += 1
            _log.debug("sweep.skipped", hub=row.hub, session_id=row.session_id, code=exc.code)
            return
        if executed.events:
            self._written = max(self._written, executed.known.sequence)
            self.done[_what(executed.events[-1])] += 1

    async def _carry(self, row: Owed, known: Known[session.State]) -> None:
        """Write the last event again, if it still is the last: a newer one needs no carrying. Raises: Conflict."""
        events = session.decide(known.state, session.Carry())
        written = [self._author.write(event, actor=ACTOR) for event in events]
        if written:
            self._written = max(self._written, await self._log.append(self._subject(row), written, known.sequence))
            self.done["carried"] += 1

    def _subject(self, row: Owed) -> str:
        subjects = self._subjects.get(row.hub)
        if subjects is None:
            subjects = self._subjects[row.hub] = HubSubjects(HubName(row.hub), self._log.partitions)
        return subjects.session(row.session_id)

    def _troubled(self, exc: Exception) -> None:
        """Said once for each new trouble."""
        problem = exc.wire() if isinstance(exc, HublogError) else str(exc).split("\n", 1)[0]
        if self.problem is None:
            _log.warning("sweep.interrupted", partition=self.partition, problem=problem)
        self.problem = problem


async def _pages(pages: Page) -> AsyncIterator[list[Owed]]:
    after: Owed | None = None
    while page := await pages(after):
        yield page
        after = page[-1]


def _what(event: codec.Event) -> Done:
    match event:
        case session.Detached():
            return "detached"
        case session.Closed(reason="expired"):
            return "expired"
        case _:
            return "closed"
