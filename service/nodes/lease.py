"""A node's lease: one incarnation, made known at start and renewed while the process lives.

Owns what is written to the bucket of leases and to the node's own subject. Judges nobody: that is the sweeper's.
"""

import asyncio
import uuid
from typing import Protocol

import msgspec
import structlog

from events import node, subjects
from events.errors import HublogError, OutcomeUnknown
from service.log.author import Author
from service.log.port import EventLog

RENEW_EVERY_S = 2.0
GOODBYE_S = 3.0  # a process that was told to stop has one deadline for everything

_log = structlog.get_logger(__name__)


class LeaseBucket(Protocol):
    """Where leases are kept: key to bytes, with the broker's time of each write; nothing expires by itself."""

    async def lease_put(self, key: str, value: bytes) -> int: ...

    async def lease_all(self) -> dict[str, tuple[bytes, int]]: ...


class LeaseRecord(msgspec.Struct, frozen=True):
    """What a renewal says. The bucket's key is the node's subject token."""

    node: str
    incarnation: str


class Lease:
    """The lease of this process. ``renewed_us``: when it was last written, by this process's clock."""

    def __init__(
        self, node_id: str, version: str, url: str, log: EventLog, bucket: LeaseBucket, author: Author
    ) -> None:
        self.node = node_id
        self.incarnation = uuid.uuid4().hex
        self.renewed_us = 0
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
        """Renew for ever; what fails is tried again with the next renewal. Ends by cancellation."""
        failing = False
        while True:
            await asyncio.sleep(RENEW_EVERY_S)
            try:
                await self._renew()
            except HublogError as error:
                if not failing:
                    _log.warning("lease.not_renewed", node=self.node, code=error.code)
                failing = True
            else:
                failing = False

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
        await self._bucket.lease_put(subjects.token(self.node), value)
        self.renewed_us = self._author.now_us()

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
        for value, stored_at_us in (await self._bucket.lease_all()).values():
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
