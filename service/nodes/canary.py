"""A canary: one event a minute that goes the way of all events, so that a broken way shows before somebody calls.

Owns what is measured of it: until the log acknowledged it, until this node heard it again, until the rows reflect it.
It is sung under ``_sys``, where no hub, session or list is, on a subject of this node's own. Nothing depends on it: it
is told, not acted upon. Knows neither Postgres nor metrics.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from typing import Literal, TypeAlias

import msgspec
import structlog

from events import node, subjects
from events.errors import HublogError
from events.ids import Position
from service.log.author import Author
from service.log.port import EventLog, LiveFeed

LEG_TIMEOUT_S = 10.0
JITTER = 0.1  # of the interval, or nodes that started together would sing together for ever

Leg: TypeAlias = Literal["append", "deliver", "project"]
LEGS: tuple[Leg, ...] = ("append", "deliver", "project")
# Returns once the rows reflect a position. Raises: ReadModelUnavailable, PositionNotReached.
Projected = Callable[[Position, float], Awaitable[None]]

_log = structlog.get_logger(__name__)


class Song(msgspec.Struct):
    """The last canary of one partition. ``legs``: seconds from its beginning, of those that were reached."""

    partition: int
    begun_at_us: int = 0  # by the wall clock; 0: none yet
    legs: dict[Leg, float] = {}
    problem: str | None = None

    def shown(self) -> dict[str, object]:
        """For ``/readyz``."""
        took_ms = {f"{leg}Ms": round(seconds * 1_000, 1) for leg, seconds in self.legs.items()}
        age_s = (time.time_ns() // 1_000 - self.begun_at_us) // 1_000_000
        return {"partition": self.partition, "ageS": age_s, **took_ms, "problem": self.problem}


class Canary:
    """One node's. ``projected`` is None where the node has no Postgres: then the last leg is not measured.

    ``songs`` and ``failures`` (by leg) count since the process began.
    """

    def __init__(
        self,
        node_id: str,
        incarnation: Callable[[], str],
        log: EventLog,
        feed: LiveFeed,
        author: Author,
        projected: Projected | None,
        *,
        every_s: float,
    ) -> None:
        self.last = [Song(number) for number in range(log.partitions)]
        self.songs = 0
        self.failures: dict[Leg, int] = dict.fromkeys(LEGS, 0)
        self._node = node_id
        self._incarnation = incarnation
        self._log = log
        self._feed = feed
        self._author = author
        self._projected = projected
        self._every_s = every_s
        self._heard: list[tuple[int, float]] = [(0, 0.0)] * log.partitions  # sequence, and when it was heard
        self._hears = [asyncio.Event() for _ in range(log.partitions)]

    async def run(self) -> None:
        """Sing for ever, or never at all. Ends by cancellation."""
        if self._every_s == 0:
            return
        listening = [
            self._feed.subscribe(subjects.canary(self._node, number), self._listener(number))
            for number in range(self._log.partitions)
        ]
        try:
            while True:
                await asyncio.sleep(self._every_s * random.uniform(1 - JITTER, 1 + JITTER))  # noqa: S311
                await asyncio.gather(*(self.sing(number) for number in range(self._log.partitions)))
        finally:
            for one in listening:
                one.unsubscribe()

    def shown(self) -> list[dict[str, object]]:
        """The last of each partition, for people."""
        return [song.shown() for song in self.last if song.begun_at_us]

    async def sing(self, number: int) -> Song:
        """One canary in one partition; what went wrong is in the song."""
        song = Song(number, self._author.now_us(), {})
        began_s = time.monotonic()
        leg: Leg = "append"
        try:
            async with asyncio.timeout(LEG_TIMEOUT_S):
                sequence = await self._append(number)
            song.legs["append"] = time.monotonic() - began_s
            leg = "deliver"
            async with asyncio.timeout(LEG_TIMEOUT_S):
                song.legs["deliver"] = await self._hear(number, sequence) - began_s
            if self._projected is not None:
                leg = "project"
                await self._projected(Position(self._log.epoch, number, sequence), LEG_TIMEOUT_S)
                song.legs["project"] = time.monotonic() - began_s
        except TimeoutError:
            song.problem = f"{leg}: not within {LEG_TIMEOUT_S:g} s"
        except HublogError as error:
            song.problem = f"{leg}: {error.wire()}"
        if song.problem is not None:
            self.failures[leg] += 1
            if self.last[number].problem is None:  # once for each row of failures
                _log.warning("canary.failed", partition=number, problem=song.problem)
        self.songs += 1
        self.last[number] = song
        return song

    async def _append(self, number: int) -> int:
        event = node.Canary(node=self._node, incarnation=self._incarnation())
        written = self._author.write(event, actor="system:gateway")
        return (await self._log.publish(subjects.canary(self._node, number), written)).sequence

    async def _hear(self, number: int, sequence: int) -> float:
        """When the feed brought it, or a later one."""
        while self._heard[number][0] < sequence:
            self._hears[number].clear()
            await self._hears[number].wait()
        return self._heard[number][1]

    def _listener(self, number: int) -> Callable[[str, int, int, bytes], None]:
        def hear(_subject: str, sequence: int, _previous: int, _payload: bytes) -> None:
            self._heard[number] = (sequence, time.monotonic())
            self._hears[number].set()

        return hear
