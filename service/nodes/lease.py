"""A node's lease: one incarnation, made known at start and renewed while the process lives.

Owns what is written to the bucket of leases and to the node's own subject, and when the node must hold still: a lease
that was not renewed for 8 s is *suspended*, 2 s before anybody may call the node lost. Its age is looked at whenever it
matters, not by a timer only: a process that was stopped finds it out with its first step. Judges nobody.
"""

import asyncio
import time
import uuid
from collections.abc import Callable
from typing import Protocol

import msgspec
import structlog

from events import codec, node, subjects
from events.envelope import NewEvent
from events.errors import HublogError, OutcomeUnknown
from service.log.author import Author
from service.log.port import EventLog
from service.voice import Voice

RENEW_EVERY_S = 2.0
RETRY_EVERY_S = 0.25
ATTEMPT_S = 2.0
STUCK_AFTER_S = 5.0  # without a renewal, before another server of a cluster is asked: then it may be in time yet
SUSPENDED_AFTER_S = 8.0
WATCH_EVERY_S = 0.5
WITNESS = "_witness"  # the key under which a judge writes: no name of a node begins like it
GOODBYE_S = 3.0  # a process that was told to stop has one deadline for everything

_log = structlog.get_logger(__name__)


class LeaseBucket(Protocol):
    """Where leases are kept: key to bytes, with the broker's time of each write; nothing expires by itself."""

    async def lease_put(self, key: str, value: bytes) -> int: ...

    async def lease_all(self) -> dict[str, tuple[bytes, int]]: ...

    async def go_elsewhere(self) -> None: ...


class LeaseRecord(msgspec.Struct, frozen=True):
    """What a renewal says. The bucket's key is the node's subject token."""

    node: str
    incarnation: str


class Lease:
    """The lease of this process. ``renewed_us``: when it was last written, by this process's clock.

    ``on_renewed`` is called with the monotonic time until which the lease now holds; ``on_lost`` when the incarnation
    was called lost: everything that was begun under it must end before the next one begins.
    """

    def __init__(
        self,
        node_id: str,
        version: str,
        url: str,
        log: EventLog,
        bucket: LeaseBucket,
        author: Author,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.node = node_id
        self.incarnation = uuid.uuid4().hex
        self.renewed_us = 0
        self.on_renewed: Callable[[float], None] = lambda _until_s: None
        self.on_lost: Callable[[], None] = lambda: None
        self.lost = 0
        self._clock = clock
        self._holds_until_s = 0.0
        self._moved_s = 0.0
        self._owed: NewEvent | None = None  # a new incarnation of which the log has not been told yet
        self._version = version
        self._url = url
        self._log = log
        self._bucket = bucket
        self._author = author

    async def start(self) -> None:
        """Take the lease, then say so in the log. Raises: LogUnavailable and its kin."""
        await self._renew()
        started = node.Started(node=self.node, incarnation=self.incarnation, version=self._version, url=self._url)
        await self._write(started)

    async def keep(self) -> None:
        """Renew for ever; what fails is soon tried again, within what is left of the lease. Ends by cancellation."""
        voice = Voice(_log.bind(node=self.node))
        failing = False
        while True:
            await asyncio.sleep(RETRY_EVERY_S if failing else RENEW_EVERY_S)
            try:
                async with asyncio.timeout(ATTEMPT_S):
                    lost = await self._called_lost()
                    if not lost:
                        await self._renew()
                if lost:
                    await self._begin_anew()
                await self._say_owed()
            except (HublogError, TimeoutError) as error:
                if not failing:
                    code = error.code if isinstance(error, HublogError) else "timeout"
                    voice.say("warning", "lease.not_renewed", code=code)
                failing = True
                await self._if_stuck()
            else:
                failing = False

    async def _if_stuck(self) -> None:
        """A server that has lost the others renews nothing, and does not let go either."""
        now_s = self._clock()
        if now_s - max(self._holds_until_s - SUSPENDED_AFTER_S, self._moved_s) > STUCK_AFTER_S:
            self._moved_s = now_s
            await self._bucket.go_elsewhere()

    def suspended(self) -> bool:
        """Whether nothing may be delivered and no command be sent: the lease is too old."""
        return self._clock() > self._holds_until_s

    async def watch(self, grace_s: float, on_grace: Callable[[], None]) -> None:
        """Say when the node is suspended; call ``on_grace`` once it was for too long. Ends by cancellation."""
        voice = Voice(_log.bind(node=self.node))
        since_s: float | None = None
        over = False
        while True:
            await asyncio.sleep(WATCH_EVERY_S)
            if not self.suspended():
                if since_s is not None:
                    voice.say("info", "node.resumed", suspended_s=round(self._clock() - since_s, 1))
                since_s, over = None, False
            elif since_s is None:
                since_s = self._clock()
                voice.say("warning", "node.suspended")
            elif not over and self._clock() - since_s > grace_s:
                over = True
                on_grace()

    async def _called_lost(self) -> bool:
        """Whether somebody has called this incarnation lost; asked before each renewal, which would hide it."""
        last = await self._log.last(subjects.node(self.node))
        if last is None:
            return False
        event = codec.decode(last.payload)[1]
        return isinstance(event, node.Lost) and event.incarnation == self.incarnation

    async def _begin_anew(self) -> None:
        """Others have been told that this incarnation is gone: end what it had, and take a new one."""
        _log.warning("node.called_lost", node=self.node, incarnation=self.incarnation)
        self.lost += 1
        self.on_lost()
        previous, self.incarnation = self.incarnation, uuid.uuid4().hex
        started = node.Started(
            node=self.node, incarnation=self.incarnation, version=self._version, url=self._url, previous=previous
        )
        self._owed = self._author.write(started, actor="system:gateway")
        await self._renew()

    async def _say_owed(self) -> None:
        """What could not be said in one renewal is said in a later one."""
        if self._owed is not None:
            await self._log.publish(subjects.node(self.node), self._owed)
            self._owed = None

    async def drain(self) -> None:
        """Say that this node is going away; a log that does not answer does not keep it.

        Raises: LogUnavailable and its kin, OutcomeUnknown.
        """
        try:
            async with asyncio.timeout(GOODBYE_S):
                await self._write(node.Draining(node=self.node, incarnation=self.incarnation))
        except TimeoutError:
            raise OutcomeUnknown(f"no answer within {GOODBYE_S:g} s") from None

    async def _renew(self) -> None:
        value = msgspec.json.encode(LeaseRecord(self.node, self.incarnation))
        asked_s = self._clock()  # the lease counts from before it was asked for: others see it no earlier than that
        await self._bucket.lease_put(subjects.token(self.node), value)
        self.renewed_us = self._author.now_us()
        self._holds_until_s = asked_s + SUSPENDED_AFTER_S
        self.on_renewed(self._holds_until_s)

    async def _write(self, event: node.Event) -> None:
        written = self._author.write(event, actor="system:gateway")
        await self._log.publish(subjects.node(self.node), written)


class LastRenewals:
    """When each incarnation last renewed, for whoever answers questions about it. Refreshed by :meth:`keep`."""

    def __init__(self, bucket: LeaseBucket) -> None:
        self._bucket = bucket
        self._seen: dict[str, int] = {}

    def at_us(self, incarnation: str) -> int | None:
        """The broker's time of the last renewal; None where there is none."""
        return self._seen.get(incarnation)

    async def refresh(self) -> None:
        """Raises: LogUnavailable."""
        seen: dict[str, int] = {}
        for key, (value, stored_at_us) in (await self._bucket.lease_all()).items():
            if key == WITNESS:
                continue
            try:
                record = msgspec.json.decode(value, type=LeaseRecord)
            except msgspec.DecodeError:
                _log.error("lease.unreadable", size=len(value))
                continue
            seen[record.incarnation] = stored_at_us
        self._seen = seen

    async def keep(self) -> None:
        """Refresh for ever; while the bucket is away the last answer stands. Ends by cancellation."""
        failing = False
        while True:
            try:
                await self.refresh()
            except HublogError as error:
                if not failing:
                    _log.warning("lease.unread", code=error.code)
                failing = True
            else:
                failing = False
            await asyncio.sleep(RENEW_EVERY_S)
