"""Histories as the service would write them: every event decided by the machine of ``events.session``, then encoded."""

import random
import uuid

import msgspec

from events import codec, invocation, node, selector, session, subjects
from events.envelope import NewEvent, Recorded
from events.errors import Refused
from events.ids import EventId, HubName
from events.subjects import HubSubjects
from service.log.port import EventLog

AT = "2026-11-21T10:00:00.000000Z"
START_US = 1_795_255_200_000_000
GROUPS = ("lobby", "Röum", "a.b", 'quo"te\\', "d", "{e,f}")
USERS = (None, "ann", "bob ✓")
METADATA = (b"null", b'{"a":1}', b'{"nul":"\\u0000", "x": [1.50]}')
ARGUMENTS = (b"[]", b'["hi"]', '[ "sp ace", {"ü":"\\u0000"} , 1e3]'.encode())
NODES = ("gw-0", "gw-1")
TTL_US = 30_000_000
STEPS = ("open", "attach", "detach", "join", "leave", "leave_all", "carry", "close", "call", "outcome", "node")


Written = tuple[str, NewEvent]


def stored_at_us(sequence: int) -> int:
    """The broker's time of an event, in every history."""
    return START_US + 1_003 * sequence


class History:
    """Events of one partition, in order: ``events``, unless a log of its own stores them (``play``)."""

    def __init__(
        self, seed: int, *, sessions: int = 8, hubs: tuple[str, ...] = ("chat", "ops-2"), partitions: int = 1
    ) -> None:
        self.events: list[Recorded] = []
        self.random = random.Random(seed)
        self.hubs = [HubSubjects(HubName(hub), partitions) for hub in hubs]
        self.names = [f"s{number}" if number % 3 else f"odd {number}.✓" for number in range(sessions)]
        self.states: dict[str, session.State] = {}
        self.last: dict[str, int] = {}
        self.calls: list[tuple[HubSubjects, EventId]] = []

    def steps(self, count: int) -> "History":
        for _ in range(count):
            self.step(self.random.choice(STEPS))
        return self

    def step(self, what: str) -> None:
        """One thing that may happen; what the machine refuses does not."""
        found = self.next(what)
        if found is not None:
            subject, event = found
            self.note(self.put(subject, event.payload))

    def next(self, what: str) -> Written | None:
        """What would be written where, if this happened; None when nothing would."""
        pick = self.random
        hub, name = pick.choice(self.hubs), pick.choice(self.names)
        if what == "node":
            return self._node()
        if what == "call":
            return self._call(hub, name)
        if what == "outcome":
            return self._outcome()
        groups = tuple(pick.sample(GROUPS, pick.randint(1, 3)))
        connection, gateway = f"c{pick.randint(0, 3)}", pick.choice(NODES)
        state = self.states.get(hub.session(name), session.INITIAL)
        commands: dict[str, session.Command] = {
            "open": session.Open(
                gateway,
                f"{gateway}-1",
                connection,
                pick.choice(USERS),
                msgspec.Raw(pick.choice(METADATA)),
                resumable=True,
            ),
            "attach": session.Attach(gateway, f"{gateway}-2", connection, state.generation, self.now_us, TTL_US),
            "detach": session.Detach(state.connection, "transport_error", self.now_us - 5),
            "join": session.Join(groups),
            "leave": session.Leave(groups),
            "leave_all": session.LeaveAll(),
            "carry": session.Carry(),
            "close": session.Close("client"),
        }
        try:
            events = session.decide(state, commands[what])
        except Refused:
            return None
        return (hub.session(name), self.new(events[0])) if events else None

    def note(self, recorded: Recorded) -> None:
        """An event was stored: what it carries is the state of its session."""
        if recorded.subject.endswith(".log"):
            self.states[recorded.subject] = codec.session_state(recorded)
            self.last[recorded.subject] = recorded.sequence

    @property
    def now_us(self) -> int:
        return stored_at_us(len(self.events) + 1)

    def add(self, subject: str, said: codec.Event, actor: str = "system:test") -> Recorded:
        return self.put(subject, self.new(said, actor).payload)

    def put(self, subject: str, payload: bytes) -> Recorded:
        """Whatever bytes, also such as nobody can read."""
        sequence = len(self.events) + 1
        headers = f"NATS/1.0\r\nNats-Msg-Id: {sequence}\r\n\r\n".encode()
        recorded = Recorded(subject, sequence, self.now_us, payload, headers)
        self.events.append(recorded)
        return recorded

    def new(self, said: codec.Event, actor: str = "system:test") -> NewEvent:
        ident = EventId(str(uuid.UUID(int=self.random.getrandbits(128), version=4)))
        return codec.encode(said, id=ident, at=AT, actor=actor)

    def _call(self, hub: HubSubjects, name: str) -> Written:
        pick = self.random
        group = pick.choice(GROUPS)
        subject, meant = pick.choice(
            [
                (hub.all(), selector.All()),
                (hub.group(group), selector.Group(group)),
                (hub.inbox(name), selector.Client(name)),
                (hub.many(), selector.Clients((name, "\0odd"))),
                (hub.user("ann"), selector.User("ann")),
            ]
        )
        said = invocation.Requested(
            target="say",
            arguments=msgspec.Raw(pick.choice(ARGUMENTS)),
            selector=meant,
            caller=pick.choice((None, name)),
            ttl_ms=pick.choice((None, 500)),
        )
        event = self.new(said, "user:ann")
        self.calls.append((hub, event.id))
        return subject, event

    def _outcome(self) -> Written | None:
        if not self.calls:
            return None
        hub, ident = self.random.choice(self.calls)
        said = self.random.choice(
            [invocation.Answered(invocation=ident, session="s1"), invocation.Cancelled(invocation=ident)]
        )
        return hub.call(ident), self.new(said)

    def _node(self) -> Written | None:
        if self.hubs[0].partition:
            return None  # nodes are facts of partition 0
        name, life = self.random.choice(NODES), f"life-{self.random.randint(1, 3)}"
        said = self.random.choice(
            [
                node.Started(node=name, incarnation=life, version="0.1.0", url="http://127.0.0.1:8000"),
                node.Draining(node=name, incarnation=life),
                node.Lost(node=name, incarnation=life, last_renewal_us=self.now_us),
                node.Delivered(node=name, incarnation=life, partition=0, up_to=7),
            ]
        )
        return subjects.node(name), self.new(said)


async def play(history: History, log: EventLog, steps: int) -> None:
    """Let things happen on a real log, which gives sequences and times of its own."""
    for _ in range(steps):
        found = history.next(history.random.choice(STEPS))
        if found is None:
            continue
        subject, event = found
        if not subject.endswith(".log"):
            await log.publish(subject, event)
            continue
        await log.append(subject, [event], history.last.get(subject, 0))
        recorded = await log.last(subject)
        assert recorded is not None
        history.note(recorded)
