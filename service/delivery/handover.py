"""What a resumed session missed: read from the log, and joined to what is live without a gap or a repeat.

From its ``attached`` on, the feed already gives a resumed session what is new; a ``Gate`` keeps that back. Those who
resume within a moment are collected, and their hub is read *once*, from the lowest cursor to the leader's last
sequence H. ``events.audience`` says who must be sent what. Each gets a page of it, at the pace at which it reads, and
when that has gone out the next; behind the last one goes whatever the gate kept from beyond H. What did not fit into
the gate is in the log as well, so that a client that does not read costs no more memory than any other.
"""

import asyncio
import math
from collections import deque
from collections.abc import AsyncIterator, Coroutine, Iterable, Sequence
from time import monotonic
from typing import Any

import msgspec
import structlog

from events import audience, codec, session
from events.errors import HublogError, LogUnavailable
from events.ids import HubName
from events.subjects import HubSubjects
from service.delivery.feed import Dispatcher
from service.delivery.gate import SHARE, Gate
from service.delivery.history import Call, History, Piece, by_subject, read_moved
from service.delivery.interest import Receiver
from service.telemetry import Buckets

COLLECT_S = 0.05
READ_WHOLE_MAX = 50_000  # a longer range is read by subject
PACE_S = 0.01
RETRY_S = 0.25
FIRST_KEPT_S = 1.0
TOOK_S = (0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1, 2, 3, 5, 10, 30, 60)
MISSED = (0, 1, 3, 10, 30, 100, 300, 1_000, 3_000, 10_000, 30_000)

_log = structlog.get_logger(__name__)


class Resumer(msgspec.Struct, eq=False):
    """One resumed session that waits for what it missed.

    ``cursor``: the last sequence that its client has, or has been given a page up to. ``attached``: the sequence of its
    ``attached``, ``opened`` that of its ``opened``. ``state``: its state at the cursor, if that is known; else it is
    loaded. ``life`` is what its own events tell up to ``read``; ``page`` are the frames that it is to be sent next,
    each with its sequence, ``page_bytes`` long. ``begun``: where reading and the cursor were before that page.
    """

    receiver: Receiver
    gate: Gate
    cursor: int
    attached: int
    state: session.State | None = None
    opened: int = 0
    life: audience.Life | None = None
    read: int = 0
    begun: tuple[int, int] | None = None
    page: deque[tuple[int, bytes]] = msgspec.field(default_factory=deque)
    page_bytes: int = 0
    attached_at_us: int | None = None
    began_s: float = msgspec.field(default_factory=monotonic)
    missed: int = 0

    def is_full(self) -> bool:
        return self.page_bytes > self.receiver.outbox.bytes_max // SHARE


class Handover:
    """Hands resumed sessions of one partition over to live delivery."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher
        self._waiting: dict[HubName, list[Resumer]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._serving: set[HubName] = set()
        self._first, self._first_at_s = 0, -math.inf
        self._high = 0  # the last sequence up to which anybody was given a page
        self.reads = 0
        self.resumed = 0
        self.replayed = 0
        self.took = Buckets(TOOK_S)
        self.missed = Buckets(MISSED)

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
        resumer.gate.handed_over = True
        self._waiting.setdefault(hub, []).append(resumer)
        if hub not in self._serving:
            self._serving.add(hub)
            self._start(self._serve(hub))

    async def _serve(self, hub: HubName) -> None:
        """One round after the other while somebody waits: those who come during one share the next."""
        history = History(self._dispatcher.log, HubSubjects(hub, self._dispatcher.log.partitions))
        try:
            while True:
                await asyncio.sleep(COLLECT_S)
                resumers = [one for one in self._waiting.pop(hub, ()) if one.receiver.outbox.open]
                if not resumers:
                    return
                try:
                    await self._round(hub, history, resumers)
                except HublogError as error:
                    _log.warning("resume.waits", hub=hub, sessions=len(resumers), code=error.code)
                    self._waiting.setdefault(hub, []).extend(resumers)
                    await asyncio.sleep(RETRY_S)
                except Exception:  # noqa: BLE001  a defect: nobody may be left waiting in silence for what never comes
                    _log.exception("resume.failed", hub=hub, sessions=len(resumers))
                    for one in resumers:
                        self._dispatcher.hole(one.receiver, one.cursor + 1)
        finally:
            self._serving.discard(hub)

    async def _round(self, hub: HubName, history: History, resumers: list[Resumer]) -> None:
        """Read on for all of them, as far as their pages hold, and let each be sent its page.

        Raises: LogUnavailable; then they are as far as they have come, and may be given to the next round.
        """
        dispatcher = self._dispatcher
        for one in resumers:
            if one.gate.dropped:
                one.gate.restart()  # before H is asked for: what was dropped lies below it
        await dispatcher.feed.flush()
        heard = max(dispatcher.position, self._high, *(one.attached for one in resumers))
        high = await dispatcher.log.last_sequence(dispatcher.partition)
        if high < heard:
            raise LogUnavailable("the stream's leader does not know what was heard already: it is none any more")
        self._high = high
        first = await dispatcher.log.first_sequence(dispatcher.partition)
        for one in resumers:
            if one.cursor + 1 < first:  # trimmed since the resume was granted: it cannot be made whole any more
                dispatcher.hole(one.receiver, one.cursor + 1)
        whole = [one for one in resumers if one.cursor + 1 >= first]
        await self._load_lives(hub, whole, high)
        for one in whole:
            one.begun = one.begun or (one.read, one.cursor)
        self.reads += 1
        await self._deal(hub, history, whole, high)
        first = await dispatcher.log.first_sequence(dispatcher.partition)
        for one in whole:
            (read, cursor), one.begun = one.begun or (high, high), None
            if read + 1 < first:  # trimmed while it was read: its page may lack something, so nothing of it is sent
                dispatcher.hole(one.receiver, cursor + 1)
        for one in resumers:
            self._start(self._hand_over(hub, one, high))

    async def _hand_over(self, hub: HubName, resumer: Resumer, high: int) -> None:
        """Write at the pace of the reader: what waits stays within half of what an outbox may hold."""
        receiver, gate = resumer.receiver, resumer.gate
        whole = not resumer.is_full()
        if whole:
            # Up to H this is the one to deliver, whatever the feed still brings of it.
            receiver.delivered = max(receiver.delivered, high)
            receiver.since = max(receiver.since, high)
        self.replayed += len(resumer.page)
        resumer.missed += len(resumer.page)
        while resumer.page and await self._room(receiver):
            gate.sent, frame = resumer.page.popleft()
            resumer.page_bytes -= len(frame)
            receiver.outbox.write(frame)
        while whole and await self._room(receiver):
            if gate.dropped:
                break  # perhaps while there was no room: it is not empty because all has gone out
            kept = gate.pop(beyond=high)
            if kept is None:
                self.resumed += 1
                self.took.add(monotonic() - resumer.began_s)
                self.missed.add(resumer.missed)
                gate.open()
                return
            resumer.cursor = gate.sent = kept[0]
            receiver.outbox.write(kept[1])
        if receiver.outbox.open:
            self.begin(hub, resumer)

    async def _room(self, receiver: Receiver) -> bool:
        """Wait until a reader has made room; false when there is no reader any more."""
        # Its outbox may outlive it here: that of a connection which has gone on with another session.
        while receiver.outbox.open and (receiver.outbox.half_full or self._dispatcher.suspended):  # noqa: ASYNC110  a transport has no event for "half empty"
            await asyncio.sleep(PACE_S)
        return receiver.outbox.open

    def _start(self, running: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(running)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # ---------------------------------------------------------------- what was missed

    async def _load_lives(self, hub: HubName, resumers: Iterable[Resumer], high: int) -> None:
        """What each session was at its cursor: as it was before it attached, or as of the lowest cursor of them all."""
        unknown = []
        for one in resumers:
            if one.life is None and one.state is not None:
                one.life, one.read = _life(one.receiver.session, one.state), one.cursor
            elif one.life is None:
                unknown.append(one)
        if not unknown:
            return
        low = min(one.cursor for one in unknown)
        own = HubSubjects(hub, self._dispatcher.log.partitions).session
        lasts = await self._dispatcher.log.last_many((own(one.receiver.session) for one in unknown), up_to=low)
        for one in unknown:
            last = lasts.get(own(one.receiver.session))
            life = _life(one.receiver.session, codec.session_state(last))
            if last is None and one.opened <= low:
                await self._recall(life, own(one.receiver.session), low, high)
            one.life, one.read = life, low

    async def _recall(self, life: audience.Life, subject: str, low: int, high: int) -> None:
        """What the log has forgotten of a session: its first event that is left carries what was true until then."""
        found = Piece(low, low, [], {})
        async for recorded in self._dispatcher.log.read(subject, low + 1, high):
            found.add(recorded)
            for sequence, event in found.own.get(life.session, ()):
                life.apply(event, sequence)
                return

    async def _deal(self, hub: HubName, history: History, resumers: list[Resumer], high: int) -> None:
        """A page for each, ending where it is full or at H. Raises: LogUnavailable."""
        if not resumers:
            return
        low = min(one.read for one in resumers)
        if high - low > READ_WHOLE_MAX:
            async for piece in self._read_by_subject(hub, resumers, low, high):
                await self._deal_piece(hub, piece, resumers, high)
                if all(one.is_full() for one in resumers):
                    return
            return
        hungry = resumers
        while hungry and (at := min(one.read for one in hungry)) < high:
            piece = await history.piece(at, high)
            await self._deal_piece(hub, piece, hungry, high)
            hungry = [one for one in hungry if not one.is_full()]

    async def _read_by_subject(
        self, hub_name: HubName, resumers: list[Resumer], low: int, high: int
    ) -> AsyncIterator[Piece]:
        log, hub = self._dispatcher.log, HubSubjects(hub_name, self._dispatcher.log.partitions)
        own = await read_moved(log, {hub.session(one.receiver.session) for one in resumers}, low, high)
        groups = {group for one in resumers if one.life is not None for group in one.life.intervals}
        for recorded in own:
            event = codec.event_of(codec.envelope(recorded.payload))
            if isinstance(event, session.Event):
                groups.update(event.after.groups)
        wanted = {hub.all(), hub.many()}
        wanted.update(hub.group(group) for group in groups)
        wanted.update(hub.inbox(one.receiver.session) for one in resumers)
        wanted.update(hub.user(one.receiver.user) for one in resumers if one.receiver.user is not None)
        async for piece in by_subject(log, wanted, own, low, high):
            yield piece

    async def _deal_piece(self, hub: HubName, piece: Piece, resumers: Sequence[Resumer], high: int) -> None:
        """Who must be sent what of one piece, in order."""
        resumers = [one for one in resumers if one.read < piece.last and not one.is_full()]
        if any(call.call.ttl_ms is not None for call in piece.calls):
            await self._learn_times(hub, [one for one in resumers if one.attached_at_us is None], high)
        audiences = _Audiences(resumers)
        own = [
            (sequence, one, event) for one in resumers for sequence, event in piece.own.get(one.receiver.session, ())
        ]
        own.sort(key=lambda item: item[0])
        ahead = iter(own)
        event = next(ahead, None)
        for call in piece.calls:
            while event is not None and event[0] < call.sequence:
                audiences.follow(*event)
                event = next(ahead, None)
            for one in audiences.of(call):
                self._put(one, call)
        while event is not None:
            audiences.follow(*event)
            event = next(ahead, None)
        for one in resumers:
            if not one.is_full():
                one.read = piece.last
                one.cursor = max(one.cursor, piece.last)

    def _put(self, one: Resumer, call: Call) -> None:
        """Add a call to the page of somebody who may be meant by it; the one that fills the page ends it."""
        if call.sequence <= max(one.cursor, one.read) or one.is_full() or one.life is None:
            return
        if not audience.receives(one.life, call.subject, call.sequence, call.call):
            return
        ttl_ms, attached_at_us = call.call.ttl_ms, one.attached_at_us
        if ttl_ms is not None and attached_at_us is not None and attached_at_us - call.stored_at_us > ttl_ms * 1_000:
            return
        frame = call.frame(one.receiver.kind, self._dispatcher.encode)
        one.page.append((call.sequence, frame))
        one.page_bytes += len(frame)
        if one.is_full():
            one.cursor = one.read = call.sequence

    async def _learn_times(self, hub_name: HubName, resumers: list[Resumer], high: int) -> None:
        """When each was attached, by the broker's clock: what has a time to live is judged by that."""
        log, own = self._dispatcher.log, HubSubjects(hub_name, self._dispatcher.log.partitions).session
        lasts = await log.last_many((own(one.receiver.session) for one in resumers), up_to=high)
        for one in resumers:
            subject = own(one.receiver.session)
            last = lasts.get(subject)
            if last is not None and last.sequence == one.attached:
                one.attached_at_us = last.stored_at_us
                continue
            async for recorded in log.read(subject, one.attached, one.attached):
                one.attached_at_us = recorded.stored_at_us


class _Audiences:
    """Whom an invocation may concern among some resumers, before ``events.audience`` is asked.

    A session may be here twice, when it resumed again before its former connection was let go: each has a page of its
    own, and only one of them is read.
    """

    def __init__(self, resumers: Sequence[Resumer]) -> None:
        self._everybody = resumers
        self._sessions: dict[str, list[Resumer]] = {}
        self._users: dict[str, list[Resumer]] = {}
        self._groups: dict[str, dict[str, Resumer]] = {}
        for one in resumers:
            self._sessions.setdefault(one.receiver.session, []).append(one)
            if one.receiver.user is not None:
                self._users.setdefault(one.receiver.user, []).append(one)
            if one.life is not None:
                self._enter(one, one.life.intervals)

    def follow(self, sequence: int, one: Resumer, event: session.Event) -> None:
        """One of a session's own events."""
        if one.life is None or one.is_full() or sequence <= one.read:
            return
        one.life.apply(event, sequence)
        self._enter(one, event.after.groups)

    def of(self, call: Call) -> Iterable[Resumer]:
        name = call.subject.name or ""
        match call.subject.kind:
            case "inbox":
                return self._sessions.get(name, [])
            case "group":
                return self._groups.get(name, {}).values()
            case "user":
                return self._users.get(name, [])
            case _:
                return self._everybody

    def _enter(self, one: Resumer, groups: Iterable[str]) -> None:
        for group in groups:
            self._groups.setdefault(group, {})[one.receiver.connection] = one


def _life(session_id: str, state: session.State) -> audience.Life:
    """A session's life from a state on."""
    life = audience.Life(session_id)
    if state.status != "none":
        life.user, life.opened = state.user, state.opened
        life.intervals = {group: [(joined, None)] for group, joined in state.groups.items()}
    return life
