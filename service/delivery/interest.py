"""What this node hears, and for whom: one chain per literal subject, shared by all of its local receivers.

Membership here is *effective* membership: it changes only as the session's own events come by in the feed, in sequence.
Knows no order and no holes; the feed does.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Literal

from events import session
from events.ids import SessionId
from events.subjects import HubSubjects
from service.delivery.outbox import Outbox
from service.log.port import LiveFeed, OnMessage, Subscription

ASKED_MAX = 256  # groups that a receiver may be about to join; beyond, each that is new here is read from its join on
LINGER_S = 10.0  # a subject is heard this long after its last receiver left: people come back
LEAVERS_MAX = 256  # how many departures a chain remembers, to know who else a late hole concerns

_CLOSED = Outbox(asyncio.WriteTransport(), 0, lambda: None)
_CLOSED.close()

Kind = Literal["log", "inbox", "group", "user", "all", "many"]


class Receiver:
    """One local session, as delivery sees it.

    ``delivered`` is the highest sequence that it was given; ``deliver`` takes a frame to it: the outbox, or a gate
    before it. ``kind`` is the kind of wire (see ``feed.Encode``). It is in the audience from behind ``since``, the
    sequence of the ``opened`` or ``attached`` that names its connection. ``on_event`` hears the session's own events in
    sequence; ``on_hole`` is told when something was missed that can no longer be delivered in order. ``asked`` are the
    groups that were heard here before a join of this session was asked for, each with the chain that has heard it ever
    since; None where it was not the same all the time.
    """

    __slots__ = (
        "asked",
        "connection",
        "deliver",
        "delivered",
        "groups",
        "hub",
        "kind",
        "live",
        "on_event",
        "on_hole",
        "outbox",
        "session",
        "since",
        "user",
    )

    def __init__(
        self,
        session_id: SessionId,
        connection: str,
        user: str | None,
        outbox: Outbox,
        on_event: "OnEvent",
        on_hole: "OnHole",
        kind: int = 0,
    ) -> None:
        self.session = session_id
        self.connection = connection
        self.user = user
        self.outbox = outbox
        self.deliver: Callable[[bytes], None] = outbox.write
        self.on_event = on_event
        self.on_hole = on_hole
        self.kind = kind
        self.hub: HubInterest | None = None
        self.since = 0
        self.delivered = 0
        self.groups: dict[str, int] = {}
        self.asked: dict[str, Chain | None] | None = None
        self.live = False

    def expect_group(self, group: str) -> None:
        """Hear a group that this session is about to join, or in which it is about to come here, while its connection
        is there. Call before that is appended, so that nothing behind it can be missed.
        """
        if self.hub is None:
            return
        chain = self.hub.hear_group(group)
        if self.asked is None or len(self.asked) >= ASKED_MAX:
            self.asked = {}
        self.asked[group] = chain if self.asked.get(group, chain) is chain else None

    def was_expected(self, group: str) -> bool:
        """Whether a group has been heard here ever since the join that comes by now was asked for; forgets that."""
        if self.asked is None or self.hub is None:
            return False
        chain = self.asked.pop(group, None)
        if not self.asked:
            self.asked = None
        return chain is not None and self.hub.group(group) is chain

    def retire(self) -> None:
        """Nobody is there any more. Chains remember those who left: that must not keep a connection alive."""
        self.hub, self.live, self.outbox, self.asked = None, False, _CLOSED, None
        self.on_event = self.on_hole = _nobody
        self.deliver = _CLOSED.write


# (receiver, event, the state after it, sequence), once memberships have followed it.
OnEvent = Callable[[Receiver, session.Event, session.State, int], None]
# (receiver, the sequence that was missed)
OnHole = Callable[[Receiver, int], None]


class Chain:
    """One literal subject. ``known``: everything on it up to this sequence was heard, or concerns nobody here.

    ``last`` is the last sequence really seen on it. A chain without members is not checked for holes. ``covered``: it
    has been heard since before the first of its members began, which was at ``base``. ``expected``: sessions that
    will be members once their `opened` has come by.
    """

    __slots__ = (
        "base",
        "covered",
        "expected",
        "hub",
        "idle_since_s",
        "kind",
        "known",
        "last",
        "leavers",
        "members",
        "name",
        "subject",
        "subscription",
    )

    def __init__(self, hub: "HubInterest", kind: Kind, name: str, subject: str, members: dict[str, Receiver]) -> None:
        self.hub = hub
        self.kind: Kind = kind
        self.name = name
        self.subject = subject
        self.members = members
        self.known = 0
        self.last = 0
        self.covered = False
        self.base = 0
        self.expected = 0
        self.subscription: Subscription | None = None
        self.idle_since_s = time.monotonic()
        self.leavers: deque[tuple[Receiver, int, int]] | None = None

    def start(self, receiver: Receiver, sequence: int) -> None:
        """``receiver`` belongs to the audience from just behind ``sequence``."""
        if not self.members:
            self.known = max(self.known, sequence)
        self.members[receiver.session] = receiver

    def end(self, receiver: Receiver, joined: int, sequence: int | None) -> None:
        """``receiver`` has left; with ``sequence``, it is still connected and may be concerned by a late hole."""
        if self.members.get(receiver.session) is not receiver:
            return
        del self.members[receiver.session]
        if sequence is not None:
            if self.leavers is None:
                self.leavers = deque(maxlen=LEAVERS_MAX)
            self.leavers.append((receiver, joined, sequence))
        if not self.members:
            self.idle_since_s = time.monotonic()


class HubInterest:
    """The chains of one hub on this node. ``receivers`` are the sessions whose ``opened`` has come by."""

    __slots__ = ("chains", "expected", "heard", "receivers", "subjects")

    def __init__(self, subjects: HubSubjects, heard: Callable[[Chain], Subscription]) -> None:
        self.subjects = subjects
        self.heard = heard
        self.chains: dict[str, Chain] = {}
        self.receivers: dict[str, Receiver] = {}
        self.expected = 0  # receivers whose `opened` is on its way: the hub must be heard meanwhile

    def group(self, name: str) -> Chain | None:
        return self.chains.get(self.subjects.group(name))

    def chain(self, kind: Kind, name: str, subject: str) -> Chain:
        """The chain of a subject, heard from now on."""
        chain = self.chains.get(subject)
        if chain is None:
            chain = self.add(Chain(self, kind, name, subject, {}))
        chain.idle_since_s = time.monotonic()
        return chain

    def add(self, chain: Chain) -> Chain:
        self.chains[chain.subject] = chain
        chain.subscription = self.heard(chain)
        return chain

    def hear_group(self, group: str) -> Chain:
        """The chain of a group, heard from now on."""
        return self.chain("group", group, self.subjects.group(group))

    @property
    def many(self) -> Chain:
        return self.chains[self.subjects.many()]

    @property
    def idle(self) -> bool:
        return not self.receivers and not self.expected


Hear = Callable[[Chain, int, int, bytes], None]


class Interest:
    """All chains of one partition. ``hear(chain, sequence, previous, payload)`` is called for every message."""

    def __init__(self, feed: LiveFeed, hear: Hear) -> None:
        self._feed = feed
        self._hear = hear
        self.hubs: dict[str, HubInterest] = {}

    def chains(self) -> Iterable[Chain]:
        for hub in self.hubs.values():
            yield from hub.chains.values()

    def expect(self, subjects: HubSubjects, receiver: Receiver, known: int = 0) -> None:
        """Hear what a session must receive; call before its ``opened`` or ``attached`` is appended.

        ``known`` is the last sequence of the session's own subject, as it was loaded. Groups that it is in already are
        to be expected one by one (``Receiver.expect_group``).
        """
        hub = self.hubs.get(subjects.hub)
        if hub is None:
            hub = self.hubs[subjects.hub] = HubInterest(subjects, self._heard)
        hub.expected += 1
        receiver.hub = hub
        self._hear_session(hub, receiver, known)
        if receiver.user is not None:
            hub.chain("user", receiver.user, subjects.user(receiver.user)).expected += 1
        if subjects.all() not in hub.chains:
            # One dict for three: the audience of both is every receiver of the hub.
            hub.add(Chain(hub, "all", "", subjects.all(), hub.receivers))
            hub.add(Chain(hub, "many", "", subjects.many(), hub.receivers))

    def activate(self, receiver: Receiver, sequence: int) -> list[Chain]:
        """``opened`` or ``attached`` came by. Returns the chains that the session now is in the audience of."""
        hub = receiver.hub
        assert hub is not None
        receiver.since, receiver.live = max(receiver.since, sequence), True
        receiver.delivered = max(receiver.delivered, sequence)
        hub.expected -= 1
        chains = [hub.chains[hub.subjects.all()], hub.many]
        if receiver.user is not None:
            user = hub.chain("user", receiver.user, hub.subjects.user(receiver.user))
            user.expected -= 1
            chains.append(user)
        first = not hub.receivers
        inbox = hub.chains.get(hub.subjects.inbox(receiver.session))
        if inbox is not None:
            chains.append(inbox)
        for chain in chains:
            if first:
                chain.known = max(chain.known, sequence)
            chain.start(receiver, sequence)
        return chains

    def join(self, receiver: Receiver, group: str, sequence: int, *, own: bool) -> tuple[Chain, bool]:
        """``joined`` came by. Returns the group's chain, and whether something behind the join may have been missed.

        ``own``: asked for by the session itself. If that was here, the group was expected before; joins made elsewhere
        may be older than the moment from which the group was heard.
        """
        hub = receiver.hub
        assert hub is not None
        expected = receiver.was_expected(group) and own
        chain = hub.hear_group(group)
        unsure = not chain.covered and not expected
        if not chain.covered:
            chain.covered, chain.base = True, sequence
        chain.start(receiver, sequence)
        return chain, unsure

    def leave(self, receiver: Receiver, group: str, joined: int, sequence: int) -> None:
        """``left`` came by, of who had joined at ``joined``."""
        hub = receiver.hub
        chain = hub.group(group) if hub is not None else None
        if chain is not None:
            chain.end(receiver, joined, sequence)

    def release(self, receiver: Receiver) -> None:
        """The connection is gone: hear nothing for it any more."""
        hub, was_live = receiver.hub, receiver.live
        if hub is None:
            return
        receiver.retire()
        if was_live:
            if hub.receivers.get(receiver.session) is receiver:
                del hub.receivers[receiver.session]
        else:
            hub.expected -= 1
        for group, joined in receiver.groups.items():
            chain = hub.group(group)
            if chain is not None:
                chain.end(receiver, joined, None)
        if receiver.user is not None:
            chain = hub.chains.get(hub.subjects.user(receiver.user))
            if chain is not None:
                chain.expected -= not was_live
                chain.end(receiver, 0, None)
        inbox = hub.chains.get(hub.subjects.inbox(receiver.session))
        if inbox is not None:
            inbox.end(receiver, 0, None)
        log = hub.chains.get(hub.subjects.session(receiver.session))
        if log is None or log.members.pop(receiver.connection, None) is None or log.members:
            return  # another connection of this node has, or is taking, the session
        del hub.chains[log.subject]
        hub.chains.pop(hub.subjects.inbox(receiver.session), None)
        if log.subscription is not None:
            log.subscription.unsubscribe()
            log.subscription = None  # it holds the chain: no cycle, no work for the collector

    def reap(self, now_s: float) -> None:
        """Drop what nobody here has needed for a while.

        A session whose ``opened`` is still to come needs its user's subject, however long that takes; a group that is
        dropped too early is only read again when the ``joined`` comes by.
        """
        for name, hub in list(self.hubs.items()):
            for chain in list(hub.chains.values()):
                if chain.kind not in {"group", "user"} or chain.members or chain.expected:
                    continue
                if now_s - chain.idle_since_s > LINGER_S:
                    self._drop(chain)
            if hub.idle and not any(chain.kind in {"group", "user"} for chain in hub.chains.values()):
                for chain in list(hub.chains.values()):
                    self._drop(chain)
                del self.hubs[name]

    def _drop(self, chain: Chain) -> None:
        chain.hub.chains.pop(chain.subject, None)
        if chain.subscription is not None:
            chain.subscription.unsubscribe()
            chain.subscription = None

    def _heard(self, chain: Chain) -> Subscription:
        return self._feed.subscribe(chain.subject, self._hearing(chain))

    def _hearing(self, chain: Chain) -> OnMessage:
        hear = self._hear

        def on_message(_subject: str, sequence: int, previous: int, payload: bytes) -> None:
            hear(chain, sequence, previous, payload)

        return on_message

    def _hear_session(self, hub: HubInterest, receiver: Receiver, known: int) -> None:
        """A session's two subjects under one subscription: half the interest to keep for every session.

        The members of its own subject go by connection: while one takes over from another, both hear it.
        """
        ident, subjects, hear = receiver.session, hub.subjects, self._hear
        heard = hub.chains.get(subjects.session(ident))
        if heard is not None:
            heard.members[receiver.connection] = receiver
            return
        log = Chain(hub, "log", ident, subjects.session(ident), {receiver.connection: receiver})
        log.known = known
        inbox = Chain(hub, "inbox", ident, subjects.inbox(ident), {})
        hub.chains[log.subject], hub.chains[inbox.subject] = log, inbox

        def on_message(subject: str, sequence: int, previous: int, payload: bytes) -> None:
            hear(log if subject.endswith(".log") else inbox, sequence, previous, payload)

        log.subscription = self._feed.subscribe(log.subject.removesuffix("log") + "*", on_message)


def _nobody(*_: object) -> None:
    """Who is told about a receiver that has retired."""
