"""What a hub's log holds for those who were away: read in pieces, decoded once, shared by all who come back meanwhile.

Owns how much is read at once and how much of it is kept. Knows events and subjects, and nobody's place in them.
"""

import heapq
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable

import msgspec
import structlog

from events import codec, session, subjects
from events.envelope import Recorded
from events.errors import HublogError
from events.invocation import Requested
from events.subjects import HubSubjects, Subject
from service.log.port import EventLog

PIECE_EVENTS = 2_000
PIECE_BYTES = 2 * 1024 * 1024
KEPT_BYTES_MAX = 16 * 1024 * 1024  # of payload; beyond it the oldest pieces go, and are read again for who wants them
OWN_KINDS = {"session", "room", "call", "node"}

Encode = Callable[[int, str, msgspec.Raw, int], bytes]

_log = structlog.get_logger(__name__)


class Call(msgspec.Struct, eq=False):
    """One invocation; ``frames`` are its ready bytes by kind of wire, as far as anybody has needed them."""

    sequence: int
    stored_at_us: int
    subject: Subject
    call: Requested
    frames: dict[int, bytes]

    def frame(self, kind: int, encode: Encode) -> bytes:
        frame = self.frames.get(kind)
        if frame is None:
            frame = self.frames[kind] = encode(kind, self.call.target, self.call.arguments, self.sequence)
        return frame


class Piece(msgspec.Struct, eq=False):
    """Everything from behind ``after`` up to ``last``: ``calls``, and sessions' ``own`` events by session."""

    after: int
    last: int
    calls: list[Call]
    own: dict[str, list[tuple[int, session.Event]]]
    size: int = 0
    events: int = 0

    def add(self, recorded: Recorded) -> None:
        self.last = recorded.sequence
        self.size += len(recorded.payload)
        self.events += 1
        subject = subjects.parse(recorded.subject)
        if subject.kind in OWN_KINDS - {"session"}:
            return
        try:
            event = codec.event_of(codec.envelope(recorded.payload))
        except HublogError as error:
            _log.error("resume.unreadable", subject=recorded.subject, sequence=recorded.sequence, code=error.code)
            return
        if isinstance(event, Requested) and subject.kind != "session":
            self.calls.append(Call(recorded.sequence, recorded.stored_at_us, subject, event, {}))
        elif isinstance(event, session.Event) and subject.kind == "session" and subject.name is not None:
            self.own.setdefault(subject.name, []).append((recorded.sequence, event))

    def is_full(self) -> bool:
        return self.events >= PIECE_EVENTS or self.size >= PIECE_BYTES


def piece(after: int) -> Piece:
    return Piece(after, after, [], {})


class History:
    """The whole of one hub, piece by piece; what was read lately is kept for those who come a moment later."""

    def __init__(self, log: EventLog, hub: HubSubjects) -> None:
        self._log = log
        self._everything = f"{hub.prefix}.>"
        self._kept: deque[Piece] = deque()
        self._size = 0

    async def piece(self, after: int, high: int) -> Piece:
        """One that begins at or before ``after`` and goes beyond it. Raises: LogUnavailable."""
        if not self._kept:
            return self._keep(await self._read(after, high), self._kept.append)
        latest = self._kept[-1]
        if latest.last == after and latest.is_full():
            return self._keep(await self._read(after, high), self._kept.append)
        if latest.after <= after <= latest.last:
            await self._grow(latest, high)
            return latest
        for one in self._kept:
            if one.after <= after < one.last:
                return one
        oldest = self._kept[0].after
        if after < oldest:
            found = await self._read(after, min(oldest, high))
            return self._keep(found, self._kept.appendleft) if found.last == oldest else found
        return await self._read(after, high)

    async def _grow(self, latest: Piece, high: int) -> None:
        """What has come since."""
        before = latest.size
        try:
            await self._fill(latest, high)
        finally:
            self._size += latest.size - before

    async def _read(self, after: int, high: int) -> Piece:
        found = piece(after)
        await self._fill(found, high)
        return found

    async def _fill(self, growing: Piece, high: int) -> None:
        if growing.is_full():
            return
        async for recorded in self._log.read(self._everything, growing.last + 1, high):
            growing.add(recorded)
            if growing.is_full():
                return
        growing.last = max(growing.last, high)

    def _keep(self, found: Piece, put: Callable[[Piece], None]) -> Piece:
        put(found)
        self._size += found.size
        while self._size > KEPT_BYTES_MAX and len(self._kept) > 1:
            self._size -= self._kept.popleft().size
        return found


async def by_subject(
    log: EventLog, wanted: Iterable[str], own: Iterable[Recorded], low: int, high: int
) -> AsyncIterator[Piece]:
    """The same of a long range: only the subjects of ``wanted`` that moved in it, merged with ``own`` events."""
    lasts = await log.last_many(wanted, up_to=high)
    moved = [subject for subject, last in lasts.items() if last.sequence > low]
    readers = [log.read(subject, low + 1, high) for subject in moved]
    found = piece(low)
    async for recorded in _merged([_each(own), *readers]):
        found.add(recorded)
        if found.is_full():
            yield found
            found = piece(found.last)
    found.last = high
    yield found


async def read_moved(log: EventLog, wanted: Iterable[str], low: int, high: int) -> list[Recorded]:
    """All events of those subjects that moved in a range, ascending."""
    lasts = await log.last_many(wanted, up_to=high)
    moved = [subject for subject, last in lasts.items() if last.sequence > low]
    found = [recorded for subject in moved async for recorded in log.read(subject, low + 1, high)]
    return sorted(found, key=lambda recorded: recorded.sequence)


async def _each(events: Iterable[Recorded]) -> AsyncIterator[Recorded]:
    for recorded in events:
        yield recorded


async def _merged(readers: list[AsyncIterator[Recorded]]) -> AsyncIterator[Recorded]:
    """By sequence; each reader is asked for its next only when its last one is gone."""
    heads: list[tuple[int, int, Recorded]] = []
    for number, reader in enumerate(readers):
        first = await anext(reader, None)
        if first is not None:
            heads.append((first.sequence, number, first))
    heapq.heapify(heads)
    while heads:
        _, number, recorded = heads[0]
        yield recorded
        following = await anext(readers[number], None)
        if following is None:
            heapq.heappop(heads)
        else:
            heapq.heapreplace(heads, (following.sequence, number, following))
