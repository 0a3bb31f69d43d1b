"""Histories as the service would write them: every event decided by the machine of ``events.session``, then encoded."""

import random
import uuid

import msgspec

from events import codec, invocation, node, selector, session, subjects
from events.envelope import NewEvent, Recorded
from events.errors import Refused
from events.ids import EventId, HubName
from events.subjects import HubSubjects

AT = "2026-11-21T10:00:00.000000Z"
START_US = 1_795_255_200_000_000
GROUPS = ("lobby", "Röum", "a.b", 'quo"te\\', "d", "{e,f}")
USERS = (None, "ann", "bob ✓")
METADATA = (b"null", b'{"a":1}', b'{"nul":"\\u0000", "x": [1.50]}')
ARGUMENTS = (b"[]", b'["hi"]', '[ "sp ace", {"ü":"\\u0000"} , 1e3]'.encode())
NODES = ("gw-0", "gw-1")
TTL_US = 30_000_000
STEPS = ("open", "attach", "detach", "join", "leave", "leave_all", "carry", "close", "call", "outcome", "node")


def stored_at_us(sequence: int) -> int:
    """The broker's time of an event, in every history."""
    return START_US + 1_003 * sequence


class History:
    """Events of one partition, in order. ``emit`` hands each on (to a log, or to the list ``events``)."""

    def __init__(
        self, seed: int, *, sessions: int = 8, hubs: tuple[str, ...] = ("chat", "ops-2"), partitions: int = 1
    ) -> None:
        self.events: list[Recorded] = []
        self.random = random.Random(seed)
        self.hubs = [HubSubjects(HubName(hub), partitions) for hub in hubs]
        self.names = [f"s{number}" if number % 3 else f"odd {number}.✓" for number in range(sessions)]
        self.states: dict[str, session.State] = {}
        self.calls: list[tuple[HubSubjects, EventId]] = []

    def steps(self, count: int) -> "History":
        for _ in range(count):
            self.step(self.random.choice(STEPS))
        return self

    def step(self, what: str) -> None:
        """One thing that may happen; what the machine refuses does not."""
        pick = self.random
        hub, name = pick.choice(self.hubs), pick.choice(self.names)
        if what in {"node", "call", "outcome"}:
            {"node": self._node, "call": lambda: self._call(hub, name), "outcome": self._outcome}[what]()
            return
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
            for said in session.decide(state, commands[what]):
                recorded = self.add(hub.session(name), said)
                self.states[hub.session(name)] = codec.session_state(recorded)
        except Refused:
            return

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

    def _call(self, hub: HubSubjects, name: str) -> None:
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
        self.put(subject, event.payload)
        self.calls.append((hub, event.id))

    def _outcome(self) -> None:
        if self.calls:
            hub, ident = self.random.choice(self.calls)
            said = self.random.choice(
                [invocation.Answered(invocation=ident, session="s1"), invocation.Cancelled(invocation=ident)]
            )
            self.add(hub.call(ident), said)

    def _node(self) -> None:
        if self.hubs[0].partition:
            return  # nodes are facts of partition 0
        name, life = self.random.choice(NODES), f"life-{self.random.randint(1, 3)}"
        said = self.random.choice(
            [
                node.Started(node=name, incarnation=life, version="0.1.0", url="http://127.0.0.1:8000"),
                node.Draining(node=name, incarnation=life),
                node.Lost(node=name, incarnation=life, last_renewal_us=self.now_us),
                node.Delivered(node=name, incarnation=life, partition=0, up_to=7),
            ]
        )
        self.add(subjects.node(name), said)
