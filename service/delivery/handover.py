"""What a resumed session missed: read from the log, and joined to what is live without a gap or a repeat.

From its ``attached`` on, the feed already gives a resumed session what is new; a :class:`Gate` keeps that back. Those
who resume within a moment are collected, and their hub is read *once*, from the lowest cursor to the leader's last
sequence H. ``events.audience`` says who must be sent what. Then each gets its part, at the pace at which it reads, and
behind it whatever the gate kept from beyond H.
"""

import asyncio
import math
from collections.abc import Coroutine, Iterable
from time import monotonic
from typing import Any

import msgspec
import structlog

from events import audience, codec, session, subjects
from events.envelope import Recorded
from events.errors import HublogError
from events.ids import HubName
from events.invocation import Requested
from events.subjects import HubSubjects
from service.delivery.feed import Dispatcher
from service.delivery.interest import Receiver

COLLECT_S = 0.05
READ_WHOLE_MAX = 50_000  # a longer range is read by subject
GATE_BYTES_MAX = 8 * 1024 * 1024
PACE_S = 0.01
RETRY_S = 0.25
FIRST_KEPT_S = 1.0

_log = structlog.get_logger(__name__)


class Gate:
    """Keeps back what is delivered to one receiver, in order, until it may go out."""

    __slots__ = ("_frames", "_receiver", "_size", "is_open")

    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver
        self._frames: list[tuple[int, bytes]] = []
        self._size = 0
        self.is_open = False
        receiver.deliver = self._keep

    def take(self, beyond: int = 0) -> list[bytes]:
        """What was kept so far, from beyond a sequence."""
        kept, self._frames, self._size = self._frames, [], 0
        return [frame for sequence, frame in kept if sequence > beyond]

    def open(self) -> None:
        """Deliver what was kept, and from now on directly."""
        self.is_open = True
        if self._receiver.hub is None:
            return  # its connection has ended
        outbox = self._receiver.outbox
        self._receiver.deliver = outbox.write
        for frame in self.take():
            outbox.write(frame)

    def _keep(self, frame: bytes) -> None:
        self._frames.append((self._receiver.delivered, frame))
        self._size += len(frame)
        if self._size > GATE_BYTES_MAX:
            self._frames.clear()
            self._receiver.outbox.overflow()


class Resumer(msgspec.Struct, eq=False):
    """One resumed session that waits for what it missed.

    ``cursor``: the last sequence that its client has. ``attached``: the sequence of its ``attached``; ``state``: the
    state there.
    """

    receiver: Receiver
    gate: Gate
    cursor: int
    attached: int
    state: session.State


class Handover:
    """Hands resumed sessions of one partition over to live delivery."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher
        self._waiting: dict[HubName, list[Resumer]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._first, self._first_at_s = 0, -math.inf
        self.reads = 0
        self.resumed = 0
        self.replayed = 0

    async def first_sequence(self) -> int:
        """The first sequence that the log still holds, at most a second old: thousands ask for it at once.

        What is trimmed in that second is noticed when the hub is read. Raises: LogUnavailable.
        """
        now_s = monotonic()
        if now_s - self._first_at_s > FIRST_KEPT_S:
            self._first = await self._dispatcher.log.first_sequence(self._dispatcher.partition)
            self._first_at_s = now_s
        return self._first

    def begin(self, hub: HubName, resumer: Resumer) -> None:
        """Take a session in; it is handed over as soon as its hub was read. Call after its ``attached`` is stored."""
        waiting = self._waiting.get(hub)
        if waiting is not None:
            waiting.append(resumer)
            return
        self._waiting[hub] = [resumer]
        self._start(self._collect(hub))

    async def _collect(self, hub: HubName) -> None:
        await asyncio.sleep(COLLECT_S)
        resumers = self._waiting.pop(hub)
        while resumers:
            try:
                high, missed = await self._missed(hub, resumers)
            except HublogError as error:
                _log.warning("resume.waits", hub=hub, sessions=len(resumers), code=error.code)
                await asyncio.sleep(RETRY_S)
                resumers = [one for one in resumers if one.receiver.outbox.open]
                continue
            for resumer in resumers:
                self._start(self._hand_over(resumer, missed.get(resumer, []), high))
            return

    async def _hand_over(self, resumer: Resumer, frames: list[bytes], high: int) -> None:
        """Write at the pace of the reader: what waits stays within half of what an outbox may hold."""
        receiver, outbox = resumer.receiver, resumer.receiver.outbox
        # Up to H this is the one to deliver, whatever the feed still brings of it.
        receiver.delivered = max(receiver.delivered, high)
        receiver.since = max(receiver.since, high)
        self.replayed += len(frames)
        while True:
            for frame in frames:
                while outbox.open and (outbox.half_full or self._dispatcher.suspended):  # noqa: ASYNC110  a transport has no event for "half empty"
                    await asyncio.sleep(PACE_S)
                outbox.write(frame)
            frames = resumer.gate.take(beyond=high)
            if not frames:
                break
        self.resumed += 1
        resumer.gate.open()

    def _start(self, running: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(running)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # ---------------------------------------------------------------- what was missed

    async def _missed(self, hub: HubName, resumers: list[Resumer]) -> tuple[int, dict[Resumer, list[bytes]]]:
        """H, and the frames that each must be sent up to there. Raises: LogUnavailable."""
        dispatcher = self._dispatcher
        await dispatcher.feed.flush()
        high = await dispatcher.log.last_sequence(dispatcher.partition)
        first = await dispatcher.log.first_sequence(dispatcher.partition)
        low = min(resumer.cursor for resumer in resumers)
        if low + 1 < first:  # trimmed since the resume was granted: it cannot be made whole any more
            for resumer in resumers:
                if resumer.cursor + 1 < first:
                    dispatcher.hole(resumer.receiver, resumer.cursor + 1)
            resumers = [one for one in resumers if one.cursor + 1 >= first]
        self.reads += 1
        hub_subjects = HubSubjects(hub, dispatcher.log.partitions)
        return high, self._deal(resumers, await self._read(hub_subjects, resumers, max(low, first - 1), high))

    async def _read(self, hub: HubSubjects, resumers: list[Resumer], low: int, high: int) -> list[Recorded]:
        log = self._dispatcher.log
        if high - low <= READ_WHOLE_MAX:
            return [recorded async for recorded in log.read(f"{hub.prefix}.>", low + 1, high)]
        own = {hub.session(one.receiver.session) for one in resumers}
        found = await self._read_moved(own, low, high)
        groups = {group for one in resumers for group in one.state.groups}
        for recorded in found:
            event = _own_event(recorded)
            if isinstance(event, session.Joined | session.Left | session.Closed):
                groups.update(event.groups)
        others = {hub.all(), hub.many()}
        others.update(hub.group(group) for group in groups)
        others.update(hub.inbox(one.receiver.session) for one in resumers)
        others.update(hub.user(one.state.user) for one in resumers if one.state.user is not None)
        found += await self._read_moved(others, low, high)
        return sorted(found, key=lambda recorded: recorded.sequence)

    async def _read_moved(self, wanted: set[str], low: int, high: int) -> list[Recorded]:
        log = self._dispatcher.log
        lasts = await log.last_many(wanted, up_to=high)
        found: list[Recorded] = []
        for subject, last in lasts.items():
            if last.sequence > low:
                found += [recorded async for recorded in log.read(subject, low + 1, high)]
        return found

    def _deal(self, resumers: list[Resumer], events: list[Recorded]) -> dict[Resumer, list[bytes]]:
        """Who must be sent what, in order."""
        lives = _lives(resumers, events)
        by_session: dict[str, Resumer] = {one.receiver.session: one for one in resumers}
        by_user: dict[str, list[Resumer]] = {}
        by_group: dict[str, list[Resumer]] = {}
        for one in resumers:
            if one.state.user is not None:
                by_user.setdefault(one.state.user, []).append(one)
            for group in lives[one].intervals:
                by_group.setdefault(group, []).append(one)
        attached_at_us = {recorded.sequence: recorded.stored_at_us for recorded in events}
        missed: dict[Resumer, list[bytes]] = {one: [] for one in resumers}
        for recorded in events:
            subject = subjects.parse(recorded.subject)
            call = _call(recorded) if subject.kind not in {"session", "room", "call", "node"} else None
            if call is None:
                continue
            candidates: Iterable[Resumer]
            match subject.kind:
                case "inbox":
                    candidates = [by_session[subject.name]] if subject.name in by_session else []
                case "group":
                    candidates = by_group.get(subject.name or "", [])
                case "user":
                    candidates = by_user.get(subject.name or "", [])
                case _:
                    candidates = resumers
            frames: dict[int, bytes] = {}
            for one in candidates:
                if recorded.sequence <= one.cursor or not audience.receives(
                    lives[one], subject, recorded.sequence, call
                ):
                    continue
                if call.ttl_ms is not None and one.attached in attached_at_us:
                    age_us = attached_at_us[one.attached] - recorded.stored_at_us
                    if age_us > call.ttl_ms * 1_000:
                        continue
                kind = one.receiver.kind
                if kind not in frames:
                    frames[kind] = self._dispatcher.encode(kind, call.target, call.arguments, recorded.sequence)
                missed[one].append(frames[kind])
        return missed


def _lives(resumers: list[Resumer], events: list[Recorded]) -> dict[Resumer, audience.Life]:
    """Each session's memberships as its own events tell them.

    What began before the range is known from its end: it is in the state at the ``attached``, or in the ``left`` that
    ended it, each with the sequence of its join.
    """
    own: dict[str, list[tuple[int, session.Event]]] = {one.receiver.session: [] for one in resumers}
    for recorded in events:
        subject = subjects.parse(recorded.subject)
        if subject.kind == "session" and subject.name in own:
            event = _own_event(recorded)
            if event is not None:
                own[subject.name].append((recorded.sequence, event))
    lives = {}
    for one in resumers:
        life = audience.Life(one.receiver.session)
        life.user, life.opened = one.state.user, one.state.opened
        history = own[one.receiver.session]
        begun = {
            (sequence, group)
            for sequence, event in history
            if isinstance(event, session.Joined)
            for group in event.groups
        }
        before = {(joined, group) for group, joined in one.state.groups.items()}
        before |= {
            (joined, group)
            for _, event in history
            if isinstance(event, session.Left | session.Closed)
            for group, joined in event.groups.items()
        }
        for joined, group in sorted(before - begun):
            life.intervals.setdefault(group, []).append((joined, None))
        for sequence, event in history:
            life.apply(event, sequence)
        lives[one] = life
    return lives


def _own_event(recorded: Recorded) -> session.Event | None:
    try:
        event = codec.event_of(codec.envelope(recorded.payload))
    except HublogError as error:
        _log.error("resume.unreadable", subject=recorded.subject, sequence=recorded.sequence, code=error.code)
        return None
    return event if isinstance(event, session.Event) else None


def _call(recorded: Recorded) -> Requested | None:
    try:
        event = codec.event_of(codec.envelope(recorded.payload))
    except HublogError as error:
        _log.error("resume.unreadable", subject=recorded.subject, sequence=recorded.sequence, code=error.code)
        return None
    return event if isinstance(event, Requested) else None
