"""One dispatcher per partition: what comes by in the feed goes to local connections, in sequence, or not at all.

A dispatcher is *live* or *held*. Live, it delivers as messages come, and checks that each continues its subject's
chain. Held, it delivers nothing and collects what comes, until ``repair`` has read from the log what was missed. No
session is given a sequence below one it was given; where that can no longer be kept, the session is told of a hole.

Hot path: one decode and one encoding per event, one write per receiver; no task, no log line.
"""

import asyncio
import math
from collections.abc import Callable, Iterable
from time import monotonic

import msgspec
import structlog

from events import codec, session
from events.errors import HublogError
from events.ids import Position
from events.trace import Traced
from service.delivery import calls
from service.delivery.backlog import Backlog
from service.delivery.interest import Chain, Interest, Receiver
from service.delivery.lag import Lag
from service.log.port import EventLog, LiveFeed
from service.telemetry.tracing import OFF, Tracing
from service.voice import Voice

# What is caught up on is dispatched in pieces of this size, so that sockets can take one before the next: all at once
# it would fill the outboxes of clients that read as fast as anybody can.
BURST_BYTES = 64 * 1024

RENEWED_LATE_S = 4.0  # twice the time between two renewals of a lease

# (kind of wire, target, arguments, position) -> one frame, the same bytes for every connection of a kind. Kind 0 is
# the plain one; what the others are is the gateway's business.
Encode = Callable[[int, str, bytes, str], bytes]
KINDS = 3

# Why delivery is held, as far as it is counted by reason: whatever else the feed says is "other".
HOLD_REASONS = (
    *("chain", "disconnected", "leader changed", "lease renewed late", "new group", "repair failed"),
    *("servers changed", "suspended", "tail", "other"),
)

_log = structlog.get_logger(__name__)


class Counters:
    """Plain ints, exported by whoever puts the process together. ``held_for``: holds by their reason."""

    __slots__ = ("deliveries", "events", "held_for", "holds", "holes", "lag", "repaired", "tail_repairs", "unreadable")

    def __init__(self) -> None:
        self.events = 0
        self.deliveries = 0
        self.lag = Lag()
        self.holds = 0
        self.held_for = dict.fromkeys(HOLD_REASONS, 0)
        self.holes = 0
        self.repaired = 0
        self.tail_repairs = 0
        self.unreadable = 0


class Dispatcher:
    """The delivery of one partition on one node."""

    def __init__(self, partition: int, log: EventLog, feed: LiveFeed, encode: Encode, tracing: Tracing = OFF) -> None:
        self.partition = partition
        self.log = log
        self.feed = feed
        self.counters = Counters()
        self.voice = Voice(_log.bind(partition=partition))
        self.interest = Interest(feed, self.hear)
        self.position = 0  # the highest sequence dispatched
        self.sure = 0  # up to here nothing is missing, whether any of it was for somebody here or not
        self.live = True
        self.held_since_s = 0.0
        self.holds_until_s = math.inf  # until when the node's lease holds; beyond it nothing is delivered
        self._encode = encode
        self._tracing = tracing
        self._prefix = str(Position(log.epoch, partition, 0))[:-1]
        # None: everything may have been missed. Else only these chains must be read.
        self.scope: set[Chain] | None = set()
        self._backlog = Backlog()
        self._wake = asyncio.Event()

    # ---------------------------------------------------------------- hot path

    def hear(self, chain: Chain, sequence: int, previous: int, payload: bytes) -> None:
        """A message of the feed."""
        if monotonic() > self.holds_until_s:
            self.hold("suspended", None)
        if not self.live:
            self._backlog.add(chain, sequence, previous, payload)
            return
        if sequence <= chain.known:
            return
        if sequence <= self.position or (previous > chain.known and chain.members):
            self.hold("chain", None)
            self._backlog.add(chain, sequence, previous, payload)
            return
        chain.known = chain.last = sequence
        self.position = sequence
        if chain.members:
            if type(payload) is bytes:
                self.dispatch(chain, sequence, payload, 0)
            else:
                self._dispatch_traced(chain, sequence, payload)

    def dispatch(self, chain: Chain, sequence: int, payload: bytes, stored_at_us: int) -> None:
        """Apply one event to the local connections. ``stored_at_us`` is 0 where the feed does not tell."""
        if chain.kind == "log":
            self._apply(chain, sequence, payload, stored_at_us)
            return
        counters = self.counters
        counters.events += 1
        try:
            written = calls.read(payload)
        except (msgspec.DecodeError, UnicodeError):
            self._not_a_call(chain, sequence, payload)
            return
        call = written.data
        frames: list[bytes | None] = [None] * KINDS
        members = chain.members if chain.kind != "many" else calls.named(chain, call)
        without = frozenset(call.without) if call.without else None
        delivered = 0
        for receiver in list(members.values()) if without is None else calls.spared(members, without):
            if receiver.delivered < sequence:
                frame = frames[receiver.kind]
                if frame is None:
                    frame = frames[receiver.kind] = self.encode(receiver.kind, call.target, call.arguments, sequence)
                receiver.delivered = sequence
                receiver.deliver(frame)
                delivered += 1
        if delivered:
            counters.deliveries += delivered
            counters.lag.add(written.at)

    def _dispatch_traced(self, chain: Chain, sequence: int, payload: bytes) -> None:
        """:meth:`dispatch` of an event whose trace is kept."""
        span = None
        if isinstance(payload, Traced):
            span = self._tracing.child(
                "deliver",
                "consumer",
                payload.traceparent,
                {"hublog.subject": chain.subject, "hublog.sequence": sequence},
            )
        before = self.counters.deliveries
        self.dispatch(chain, sequence, payload, 0)
        if span is not None:
            span.note("hublog.receivers", self.counters.deliveries - before)
            span.end()

    def encode(self, kind: int, target: str, arguments: msgspec.Raw, sequence: int) -> bytes:
        """The frame of a call for one kind of wire."""
        return self._encode(kind, target, bytes(arguments), f"{self._prefix}{sequence}")

    # ---------------------------------------------------------------- late events, found by a repair

    def dispatch_late(self, chain: Chain, sequence: int, payload: bytes, stored_at_us: int) -> None:
        """An event that others have overtaken: deliver it where nothing later was delivered, else tell of the hole."""
        if chain.kind == "log":
            self._apply(chain, sequence, payload, stored_at_us)
            return
        try:
            call = calls.read(payload).data
        except (msgspec.DecodeError, UnicodeError):
            self._not_a_call(chain, sequence, payload)
            return
        for receiver in list(calls.concerned(chain, call, sequence).values()):
            if receiver.session in call.without:
                continue
            if receiver.delivered < sequence:
                receiver.delivered = sequence
                receiver.deliver(self.encode(receiver.kind, call.target, call.arguments, sequence))
                self.counters.deliveries += 1
            else:
                self.hole(receiver, sequence)

    def hole(self, receiver: Receiver, sequence: int) -> None:
        """Something that a session had to receive can no longer be delivered in order."""
        self.counters.holes += 1
        receiver.on_hole(receiver, sequence)

    # ---------------------------------------------------------------- live and held

    def hold(self, reason: str, scope: Iterable[Chain] | None) -> None:
        """Deliver nothing until what may be missing was read: of these chains, or (None) of all."""
        if scope is None:
            self.scope = None
        elif self.scope is not None:
            self.scope.update(scope)
        if self.live:
            self.live = False
            self.held_since_s = monotonic()
            self.counters.holds += 1
            self.counters.held_for[reason if reason in HOLD_REASONS else "other"] += 1
            if scope is None:
                self.voice.say("info", "delivery.held", reason=reason)
        self._wake.set()

    def begin_round(self) -> set[Chain] | None:
        """Returns the scope to read. What was collected before everything is read again is of no use any more."""
        scope, self.scope = self.scope, set()
        if scope is None or self._backlog.overflowed:
            self._backlog = Backlog()
            return None
        return scope

    def collected(self) -> list[tuple[Chain, int, bytes]]:
        """What waits to be dispatched, as it came."""
        return self._backlog.messages()

    def insert(self, found: Iterable[tuple[Chain, int, bytes]]) -> None:
        """Put what was read, ascending, in its place among what was collected; what was overtaken is dispatched now."""
        ahead = []
        for chain, sequence, payload in found:
            if sequence > self.position:
                ahead.append((chain, sequence, payload))
            elif sequence > chain.known:
                chain.known = chain.last = sequence
                self.dispatch_late(chain, sequence, payload, 0)
        self._backlog.insert(ahead)

    def go_live(self, up_to: int) -> bool:
        """Everything up to ``up_to`` is dispatched: go on with what was collected behind it.

        False: that was a piece of it, and the dispatcher is held still; let others run, and call this again.
        """
        self.position = max(self.position, up_to)
        self.live = True
        backlog, self._backlog = self._backlog, Backlog()
        pause_bytes = backlog.size - BURST_BYTES
        while backlog.waiting:
            if backlog.size < pause_bytes and self.live:
                self.live, self._backlog = False, backlog
                return False
            chain, sequence, previous, payload = backlog.waiting.popleft()
            backlog.size -= len(payload)
            # If this holds the dispatcher again, the rest is collected again, in order.
            if chain.hub.chains.get(chain.subject) is chain:
                self.hear(chain, sequence, previous, payload)
        return True

    @property
    def settled(self) -> bool:
        """Nothing is left to read: the dispatcher may go live."""
        return not self._backlog.overflowed and self.scope is not None and not self.scope

    async def held(self) -> None:
        """Return when the dispatcher is held and its feed is connected, so that a repair can begin."""
        while self.live or self.suspended or not self.feed.connected:
            self._wake.clear()
            await self._wake.wait()

    @property
    def held_s(self) -> float:
        """For how long nothing has been delivered; 0 while it is live."""
        return 0.0 if self.live else monotonic() - self.held_since_s

    @property
    def suspended(self) -> bool:
        """Whether the node's lease is too old to deliver anything."""
        return monotonic() > self.holds_until_s

    def renewed(self, holds_until_s: float) -> None:
        """The node's lease holds until then (monotonic)."""
        if holds_until_s - self.holds_until_s > RENEWED_LATE_S:
            # Its server may have been cut off from the others, and what they stored meanwhile was not heard.
            self.hold("lease renewed late", None)
        self.holds_until_s = holds_until_s
        self._wake.set()

    def observe(self) -> None:
        """Hold with every disconnect, before anything that comes after it, and with every other doubt of the feed."""
        self.feed.observe(lambda: self.hold("disconnected", None), self._wake.set)
        self.feed.doubt(self.partition, lambda reason: self.hold(reason, None))

    # ---------------------------------------------------------------- what an event does

    def _apply(self, chain: Chain, sequence: int, payload: bytes, stored_at_us: int) -> None:
        """One event of a session's own subject: its memberships take effect here, and nowhere else."""
        if not chain.members:
            return  # its connection ended while this was being read
        try:
            written = codec.envelope(payload)
            event = codec.event_of(written)
            if not isinstance(event, session.Event):
                self._unreadable(chain, sequence, "no event of a session")
                return
        except HublogError as error:
            # What it changes is not known, so what this session must receive is not known any more.
            self._unreadable(chain, sequence, error.message)
            for receiver in list(chain.members.values()):
                self.hole(receiver, sequence)
            return
        state = session.settle(event, sequence, stored_at_us)
        own = isinstance(event, session.Attached) or written.actor == f"session:{chain.name}"
        # Whoever loses the session ends before its new connection begins.
        for receiver in sorted(chain.members.values(), key=lambda one: one.connection == state.connection):
            holds = state.status == "active" and receiver.connection == state.connection
            if holds and not receiver.live and receiver.hub is not None:
                self._begin(receiver, sequence)
            if receiver.live:
                self._follow_groups(receiver, state, sequence, own=own)
            receiver.on_event(receiver, event, state, sequence)

    def _begin(self, receiver: Receiver, sequence: int) -> None:
        """The session is this connection's from here on."""
        for audience in self.interest.activate(receiver, sequence):
            if audience.last > sequence:
                # Its beginning came late, and calls behind it have passed.
                self.hole(receiver, sequence)
                break

    def _follow_groups(self, receiver: Receiver, state: session.State, sequence: int, *, own: bool) -> None:
        before, receiver.groups = receiver.groups, state.groups
        if before == state.groups or receiver.hub is None:
            return
        for group in before.keys() - state.groups.keys():
            self.interest.leave(receiver, group, before[group], sequence)
        new: list[Chain] = []
        overtaken = 0
        for group, joined in state.groups.items():
            if before.get(group) == joined:
                continue
            # It may have been handed over beyond this event already: that is its own affair, not the chain's.
            start, covered = max(joined, min(receiver.since, sequence)), max(joined, receiver.since)
            chain, unsure = self.interest.join(receiver, group, start, own=own)
            if unsure:
                new.append(chain)
            if max(chain.last, chain.base, chain.hub.many.last) > covered:
                # The join itself came late, and calls behind it have passed, or were never heard here.
                overtaken = covered
        if new:
            self.hold("new group", new)
        if overtaken:
            self.hole(receiver, overtaken)  # the last thing: it ends the connection

    def _not_a_call(self, chain: Chain, sequence: int, payload: bytes) -> None:
        """Other events than calls pass by; what does not decode at all is counted and said."""
        if not calls.is_another_event(payload):
            self._unreadable(chain, sequence, "the call does not decode")

    def _unreadable(self, chain: Chain, sequence: int, reason: str) -> None:
        self.counters.unreadable += 1
        _log.error("delivery.unreadable", subject=chain.subject, sequence=sequence, reason=reason)
