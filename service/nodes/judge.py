"""Who of the nodes is lost: a lease that was not renewed for 10 s, under the eyes of somebody who was there all along.

Owns the watching of the leases and the one event that follows, ``node.lost``. It refuses to conclude anything from time
in which it did not look itself: while NATS is away nobody can renew, and a judge that was stopped has seen nothing. It
knows nothing of sessions; those are the sweeper's.
"""

import asyncio
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

import msgspec
import psycopg
import structlog

from events import node, subjects
from events.envelope import NewEvent, Recorded
from events.errors import HublogError
from events.ids import EventId
from projections.read.sweeping import Life
from service.log.author import Author
from service.log.port import Stored
from service.nodes.lease import STUCK_AFTER_S, WITNESS, LeaseRecord
from service.nodes.rows import Lives

LOOK_EVERY_S = 1.0
LOST_AFTER_S = 10.0
GAP_MAX_S = 3.0  # between two looks: after a longer one everybody is given the whole time again
ROWS_TIMEOUT_S = 1.0  # the read models must not make a gap between two looks
IDLE_LIMIT_S = 15.0  # without a look, before the process says that it is not ready
ACTOR = "system:sweeper"

# Namespace of the ids of node.lost; fixed for ever, so that two judges write the same event.
_LOST = uuid.UUID("8d0b5f0e-6b1e-5c0a-9d0c-2b7c9a4f6e21")

_log = structlog.get_logger(__name__)


class Leases(Protocol):
    """The log and the bucket of leases, as far as a judge needs them."""

    @property
    def connected(self) -> bool: ...

    def observe(self, on_disconnected: Callable[[], None], on_connected: Callable[[], None]) -> None: ...

    async def last(self, subject: str) -> Recorded | None: ...

    async def lease_put(self, key: str, value: bytes) -> int: ...

    async def go_elsewhere(self) -> None: ...

    async def lease_all(self) -> dict[str, tuple[bytes, int]]: ...

    async def lease_get(self, key: str) -> tuple[bytes, int] | None: ...

    async def publish(self, subject: str, event: NewEvent) -> Stored: ...


class _Seen(msgspec.Struct):
    """The newest renewal that was seen (broker's µs, 0: none), and since when (monotonic) there was no newer one."""

    renewed_us: int
    since_s: float


class Watch:
    """What was seen of leases, and for how long without a gap. Pure: times are arguments, from a monotonic clock."""

    def __init__(self) -> None:
        self._seen: dict[str, _Seen] = {}
        self._began_s = 0.0
        self._ended_s: float | None = None

    def interrupted(self) -> None:
        """Nobody looked for a while: whatever was counted is void."""
        self._seen.clear()
        self._ended_s = None

    def saw(self, began_s: float, ended_s: float, renewals: Mapping[str, int], known: Iterable[str] = ()) -> None:
        """A look at all leases, asked for and answered at these times.

        ``known``: incarnations to watch although they may have no lease (another one of the same node has it now).
        """
        if self._ended_s is not None and ended_s - self._ended_s > GAP_MAX_S:
            self.interrupted()
        self._began_s, self._ended_s = began_s, ended_s
        watched = {*known, *renewals}
        for gone in self._seen.keys() - watched:
            del self._seen[gone]
        for incarnation in watched:
            renewed_us = renewals.get(incarnation)
            seen = self._seen.get(incarnation)
            if seen is None or (renewed_us is not None and renewed_us != seen.renewed_us):
                self._seen[incarnation] = _Seen(renewed_us or 0, ended_s)

    def silent(self) -> dict[str, int]:
        """Who has not renewed for too long, with the last renewal seen. Counted from an answer to a later question."""
        return {
            incarnation: seen.renewed_us
            for incarnation, seen in self._seen.items()
            if self._began_s - seen.since_s >= LOST_AFTER_S
        }

    def still_silent(self, incarnation: str, now_s: float) -> bool:
        """Whether the last look still stands: nothing was interrupted since, and it is not long ago."""
        return self._ended_s is not None and now_s - self._ended_s <= GAP_MAX_S and incarnation in self.silent()

    def start_over(self, incarnation: str) -> None:
        self._seen.pop(incarnation, None)


class Judge:
    """At work while ``leading()``: in the process that holds the lock of partition 0; ``elsewhere()``: another one is.
    Attributes are for metrics and readiness.
    """

    def __init__(
        self,
        leases: Leases,
        lives: Lives,
        author: Author,
        leading: Callable[[], bool],
        elsewhere: Callable[[], bool],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.lost = 0  # judged by this process
        self.problem: str | None = None
        self._leases = leases
        self._lives = lives
        self._author = author
        self._leading = leading
        self._elsewhere = elsewhere
        self._clock = clock
        self._watch = Watch()
        self._known: dict[str, Life] = {}
        self._looked_s = clock()
        self._moved_s = 0.0
        leases.observe(self._watch.interrupted, lambda: None)

    @property
    def age_s(self) -> float:
        """Since the last look, or since it was another process' duty."""
        return self._clock() - self._looked_s

    async def run(self) -> None:
        """Look and judge for ever. Ends by cancellation."""
        while True:
            await self.look()
            await asyncio.sleep(LOOK_EVERY_S)

    async def look(self) -> None:
        """One look at all leases, and what follows from it."""
        if not self._leading():
            self._watch.interrupted()
            if self._elsewhere():
                self._looked_s = self._clock()
            return
        try:
            judging = await self._observe()
            if judging:
                for incarnation, renewed_us in self._watch.silent().items():
                    await self._judge(incarnation, renewed_us)
        except (HublogError, TimeoutError) as exc:
            self._watch.interrupted()
            self._troubled(exc)
            now_s = self._clock()
            if now_s - max(self._looked_s, self._moved_s) > STUCK_AFTER_S:
                self._moved_s = now_s
                await self._leases.go_elsewhere()

    async def _observe(self) -> bool:
        """See every lease. Gives whether the read models say who is there to be judged.

        Raises: HublogError, TimeoutError when the leases cannot be seen.
        """
        began_s = self._clock()
        async with asyncio.timeout(GAP_MAX_S):
            # A renewal asks the log, then writes to the bucket. While either has no leader nobody can renew, and any
            # replica still shows the old renewals: to have done the same is the proof that others could.
            await self._leases.last(subjects.node(WITNESS))
            await self._leases.lease_put(WITNESS, b"")
            found = await self._leases.lease_all()
        ended_s = self._clock()
        renewals: dict[str, int] = {}
        nodes: dict[str, str] = {}
        for key, (value, stored_at_us) in found.items():
            record = _read(value) if key != WITNESS else None
            if record is not None:
                renewals[record.incarnation], nodes[record.incarnation] = stored_at_us, record.node
        answered = await self._learn(renewals, nodes)
        lost = {life.incarnation for life in self._known.values() if life.lost}
        living = {incarnation: at for incarnation, at in renewals.items() if incarnation not in lost}
        self._watch.saw(began_s, ended_s, living, self._known.keys() - lost)
        self._looked_s = ended_s
        if answered:
            self.problem = None
        return answered and self._leases.connected

    async def _learn(self, renewals: Mapping[str, int], nodes: Mapping[str, str]) -> bool:
        """Who there is: what the log says, and leases of which it says nothing. False: Postgres does not answer."""
        try:
            async with asyncio.timeout(ROWS_TIMEOUT_S):
                known = await self._lives.lives(list(renewals))
        except (HublogError, psycopg.Error, TimeoutError) as exc:
            self._troubled(exc)
            return False
        self._known = {life.incarnation: life for life in known}
        for incarnation, name in nodes.items():
            self._known.setdefault(incarnation, Life(name, incarnation, lost=False, changed_at_us=0))
        return True

    async def _judge(self, incarnation: str, renewed_us: int) -> None:
        """Ask the leader once more, then say so. Raises: HublogError; then it counts from the beginning."""
        life = self._known[incarnation]
        found = await self._leases.lease_get(subjects.token(life.node))
        if found is not None:
            record = _read(found[0])
            if record is not None and record.incarnation == incarnation and found[1] != renewed_us:
                self._watch.start_over(incarnation)  # the look was answered by a replica that lags
                return
        if not self._watch.still_silent(incarnation, self._clock()):
            return
        said = node.Lost(node=life.node, incarnation=incarnation, last_renewal_us=renewed_us or life.changed_at_us)
        event = self._author.write(said, actor=ACTOR, event_id=lost_id(incarnation))
        stored = await self._leases.publish(subjects.node(life.node), event)
        # Should the rows not come to say so, it is said again, under the same id.
        self._watch.start_over(incarnation)
        if not stored.duplicate:
            self.lost += 1
            _log.warning("node.lost", node=life.node, incarnation=incarnation, last_renewal_us=said.last_renewal_us)

    def _troubled(self, exc: Exception) -> None:
        """Said once for each new trouble."""
        problem = exc.wire() if isinstance(exc, HublogError) else str(exc).split("\n", 1)[0] or type(exc).__name__
        if self.problem is None:
            _log.warning("judge.cannot_see", problem=problem)
        self.problem = problem


def _read(value: bytes) -> LeaseRecord | None:
    """What a renewal says; None where nobody can read it, and then nobody has renewed."""
    try:
        return msgspec.json.decode(value, type=LeaseRecord)
    except msgspec.DecodeError:
        _log.error("lease.unreadable", size=len(value))
        return None


def lost_id(incarnation: str) -> EventId:
    """The id of an incarnation's ``node.lost``, whoever writes it."""
    return EventId(str(uuid.uuid5(_LOST, incarnation)))
