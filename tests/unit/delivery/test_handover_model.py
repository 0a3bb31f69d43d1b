"""Resume held against the audience: whichever node a session goes to, its client gets each message once and in order.

Sessions wander between two nodes, by a clean detach, by a node that just stops writing, or while the old connection
is still alive; groups are joined and left and calls are made meanwhile, and the log's connection goes and comes. At the
end every client holds exactly what ``events.audience`` says, as if nothing had happened.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from unittest.mock import patch

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from events import audience, codec, invocation, selector, session, subjects
from events.ids import HubName, SessionId
from service.delivery import handover, history, repair
from service.delivery.feed import Dispatcher
from service.delivery.gate import Gate
from service.delivery.handover import Handover, Resumer
from service.delivery.interest import Receiver
from service.delivery.outbox import Outbox
from service.log.author import Author
from service.log.memory import MemoryEventLog
from tests.servers.delivery import store_call

HUB = HubName("h")
SUBJECTS = subjects.HubSubjects(HUB, 1)
GROUPS = ["a", "b"]


class Transport(asyncio.WriteTransport):
    """A socket to one client, which takes what comes while this is its newest one, and unless it pauses."""

    def __init__(self, client: "Client") -> None:
        super().__init__()
        self.client = client
        self.waiting: list[bytes] = []

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.waiting.append(bytes(data))
        if not self.client.pauses:
            self.read()

    def read(self) -> None:
        came, self.waiting = self.waiting, []
        for frame in came:
            if self.client.transport is self:
                sequence, _, number = frame.decode().partition(":")
                self.client.received.append(int(number))
                self.client.cursor = int(sequence)

    def get_write_buffer_size(self) -> int:
        return sum(map(len, self.waiting))


class Client:
    """A resumable session as its client sees it: what it was sent, and the cursor it would resume with."""

    def __init__(self, world: "World", user: str | None) -> None:
        self.world = world
        self.id = SessionId(f"s{len(world.clients)}")
        self.user = user
        self.received: list[int] = []
        self.cursor = 0
        self.connections = 0
        self.transport: Transport | None = None
        self.receiver: Receiver | None = None
        self.node = 0
        self.pauses = False

    def reads(self) -> None:
        self.pauses = False
        if self.transport is not None:
            self.transport.read()

    def connect(self, node: int) -> tuple[Receiver, Gate]:
        self.connections += 1
        self.node = node
        transport = self.transport = Transport(self)
        outbox = Outbox(self.transport, self.world.outbox_bytes_max, lambda: self.slow(transport))
        dispatcher = self.world.nodes[node]
        connection = f"{self.id}-{self.connections}"

        def own(receiver: Receiver, _event: session.Event, state: session.State, _sequence: int) -> None:
            if receiver.live and (state.connection != connection or state.status != "active"):
                dispatcher.interest.release(receiver)

        def hole(_receiver: Receiver, sequence: int) -> None:
            raise AssertionError(f"{connection} was told of a hole at {sequence}, although nothing was dropped")

        receiver = Receiver(self.id, connection, self.user, outbox, own, hole)
        outbox._corked = None
        self.receiver = receiver
        return receiver, Gate(receiver)

    def slow(self, transport: Transport) -> None:
        """Too much waits for it: it is cut off, and goes on elsewhere."""
        if self.transport is transport:
            self.world.leave_connection(self, said=True)

    @property
    def state(self) -> session.State:
        return codec.session_state(self.world.log._partitions[0].last_of(SUBJECTS.session(self.id)))


class World:
    def __init__(self, outbox_bytes_max: int = 1 << 20) -> None:
        self.log = MemoryEventLog()
        self.outbox_bytes_max = outbox_bytes_max

        def encode(_kind: int, _target: str, arguments: bytes, position: str) -> bytes:
            return position.rpartition("-")[2].encode() + b":" + arguments[1:-1]

        self.nodes = [Dispatcher(0, self.log, self.log, encode) for _ in range(2)]
        self.handovers = [Handover(node) for node in self.nodes]
        self.author = Author()
        self.clients: list[Client] = []
        self.calls = 0

    def store(self, client: Client, command: session.Command, actor: str = "system:api") -> int:
        """Decide and store as whoever appended first; returns the sequence of what was written, 0 for nothing."""
        subject = SUBJECTS.session(client.id)
        sequence = 0
        for event in session.decide(client.state, command):
            sequence = self.log.store(subject, self.author.write(event, actor=actor))
        return sequence

    def open(self, user: str | None, node: int) -> None:
        client = Client(self, user)
        self.clients.append(client)
        receiver, gate = client.connect(node)
        self.nodes[node].interest.expect(SUBJECTS, receiver)
        client.cursor = self.store(client, session.Open(f"n{node}", "i", receiver.connection, user, resumable=True))
        gate.open()

    def leave_connection(self, client: Client, *, said: bool) -> None:
        """The connection ends; ``said``: its node could still write that."""
        receiver, client.receiver, client.transport = client.receiver, None, None
        if receiver is None:
            return
        self.nodes[client.node].interest.release(receiver)
        if said and self.log.connected:
            self.store(client, session.Detach(receiver.connection, "transport_error", 0))

    def resume(self, client: Client, node: int) -> None:
        before, cursor = client.state, client.cursor
        receiver, gate = client.connect(node)
        known = self.log._partitions[0].last_of(SUBJECTS.session(client.id))
        assert known is not None
        self.nodes[node].interest.expect(SUBJECTS, receiver, known.sequence)
        for group in before.groups:
            receiver.expect_group(group)
        attach = session.Attach(f"n{node}", "i", receiver.connection, before.generation, 0, 1 << 60)
        sequence = self.store(client, attach)
        assert sequence
        state = before if known.sequence <= cursor else None
        self.handovers[node].begin(HUB, Resumer(receiver, gate, cursor, sequence, state))

    def call(self, to: selector.Selector) -> None:
        self.calls += store_call(self.log, self.author, to, None, self.calls + 1)

    def expected(self, client: Client) -> list[int]:
        life = audience.Life(client.id)
        own = SUBJECTS.session(client.id)
        events = [(recorded, codec.decode(recorded.payload)[1]) for recorded in self.log._partitions[0].events]
        for recorded, event in events:
            if recorded.subject == own:
                assert isinstance(event, session.Event)
                life.apply(event, recorded.sequence)
        return [
            int(bytes(event.arguments)[1:-1])
            for recorded, event in events
            if isinstance(event, invocation.Requested)
            and audience.receives(life, subjects.parse(recorded.subject), recorded.sequence, event)
        ]


CLIENT = st.integers(0, 3)
NODE = st.integers(0, 1)
GROUP = st.sampled_from(GROUPS)
ACTION = st.one_of(
    st.tuples(st.just("open"), st.sampled_from([None, "u"]), NODE),
    st.tuples(st.just("join"), CLIENT, GROUP),
    st.tuples(st.just("leave"), CLIENT, GROUP),
    st.tuples(st.just("all")),
    st.tuples(st.just("group"), GROUP),
    st.tuples(st.just("groups")),
    st.tuples(st.just("client"), CLIENT),
    st.tuples(st.just("user")),
    st.tuples(st.just("detach"), CLIENT),
    st.tuples(st.just("die"), CLIENT),
    st.tuples(st.just("resume"), CLIENT, NODE),
    st.tuples(st.just("resume"), CLIENT, NODE),
    st.tuples(st.just("turns"), st.sampled_from([1, 2, 3, 5, 8, 12, 60])),
    st.tuples(st.just("pause"), CLIENT),
    st.tuples(st.just("read"), CLIENT),
    st.tuples(st.just("crowd"), CLIENT),
    st.tuples(st.just("cut")),
    st.tuples(st.just("heal")),
    st.tuples(st.just("doubt")),
    st.tuples(st.just("reap"), NODE),
    st.tuples(st.just("join itself"), CLIENT, GROUP, st.booleans()),
    st.tuples(st.just("carry"), CLIENT),
    # What only hurts close together, so that it is tried often.
    st.tuples(st.just("trip"), CLIENT, NODE, GROUP),
    st.tuples(st.just("everybody moves"), NODE),
    st.tuples(st.just("join and settle"), CLIENT, GROUP),
)


def act(world: World, action: tuple[object, ...]) -> None:
    match action:
        case ("open", user, node) if world.log.connected and len(world.clients) < 4:
            world.open(user, node)  # type: ignore[arg-type]
        case ("all",):
            world.call(selector.All())
        case ("group", group):
            world.call(selector.Group(str(group)))
        case ("groups",):
            world.call(selector.Groups(("a", "b")))
        case ("user",):
            world.call(selector.User("u"))
        case ("cut",):
            world.log.disconnect()
        case ("heal",):
            world.log.reconnect()
        case ("doubt",):
            world.log.change_leader(0)
        case ("reap", node):
            if world.nodes[int(node)].live:  # type: ignore[call-overload]
                world.nodes[int(node)].interest.reap(time.monotonic() + 1_000)  # type: ignore[call-overload]
        case ("everybody moves", node) if world.log.connected:
            for client in world.clients:
                world.leave_connection(client, said=False)
            world.call(selector.Groups(("a", "b")))
            for client in world.clients:
                world.resume(client, int(node))  # type: ignore[call-overload]
        case (what, number, *rest) if what != "open" and world.clients:
            client = world.clients[int(number) % len(world.clients)]  # type: ignore[call-overload]
            match what, rest:
                case "join", [group]:
                    world.store(client, session.Join((str(group),)))
                case "join itself", [group, here]:
                    # On the connection that it has, which hears the group beforehand, or on one that it had before.
                    if here and client.receiver is not None and world.log.connected:
                        client.receiver.expect_group(str(group))
                    world.store(client, session.Join((str(group),)), f"session:{client.id}")
                case "carry", []:
                    world.store(client, session.Carry())
                case "leave", [group]:
                    world.store(client, session.Leave((str(group),)))
                case "client", []:
                    world.call(selector.Client(client.id))
                case "pause", []:
                    client.pauses = True
                case "read", []:
                    client.reads()
                case "crowd", []:
                    for _ in range(4):
                        world.call(selector.Client(client.id))
                case "detach", []:
                    world.leave_connection(client, said=True)
                case "die", []:
                    world.leave_connection(client, said=False)
                case "join and settle", [group]:
                    world.store(client, session.Join((str(group),)))
                    world.call(selector.Client(client.id))
                case "trip", [node, group] if world.log.connected:
                    # Away, it loses a group that it was in, and comes to be in another one.
                    world.leave_connection(client, said=False)
                    world.call(selector.Group(str(group)))
                    world.store(client, session.Leave((str(group),)))
                    world.call(selector.Group(str(group)))
                    world.store(client, session.Join(tuple(GROUPS)))
                    world.call(selector.Groups(("a", "b")))
                    world.resume(client, int(node))  # type: ignore[call-overload]
                case "resume", [node] if world.log.connected:
                    world.resume(client, int(node))  # type: ignore[call-overload]


async def turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def play(actions: list[tuple[object, ...]], outbox_bytes_max: int) -> None:
    world = World(outbox_bytes_max)
    running = [asyncio.ensure_future(repair.run(node)) for node in world.nodes]
    await turns(2)
    try:
        for action in actions:
            if action[0] == "turns":
                await turns(int(action[1]))  # type: ignore[call-overload]
            else:
                act(world, action)
        world.log.reconnect()
        for client in world.clients:
            client.reads()
        await turns(20)
        for number, client in enumerate(world.clients):
            if client.receiver is None:
                world.resume(client, number % 2)
        await settled(world)
        for client in world.clients:
            must = world.expected(client)
            assert client.received == must, f"{client.id} was sent {client.received}, must get {must}"
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


async def settled(world: World) -> None:
    """Live, handed over, and with nothing that the tail check would still find."""
    async with asyncio.timeout(5):
        await turns(10)
        while True:
            busy = any(one._waiting or one._tasks for one in world.handovers) or not all(n.live for n in world.nodes)
            if not busy:
                before = sum(node.counters.tail_repairs for node in world.nodes)
                for node in world.nodes:
                    await repair.look_behind(node, list(node.interest.chains()))
                await turns(5)
                if sum(node.counters.tail_repairs for node in world.nodes) == before:
                    return
            await asyncio.sleep(0.001)


# Who comes back and reads nothing at first, while more is said than is kept for it.
BACK_WITHOUT_READING: list[tuple[object, ...]] = [
    ("open", None, 0),
    ("turns", 12),
    ("pause", 0),
    ("die", 0),
    *[("client", 0)] * 10,
    ("resume", 0, 1),
    *[("turns", 12)] * 10,
    ("crowd", 0),
    ("turns", 12),
    ("read", 0),
    ("turns", 12),
]

FULL = settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))


# A session that resumes on a node on which it already does, before that one has heard of it.
TWICE_AT_ONCE: list[tuple[object, ...]] = [
    ("open", None, 0),
    ("join and settle", 0, "a"),
    ("group", "a"),
    ("everybody moves", 1),
    ("resume", 0, 0),
    ("everybody moves", 1),
    ("cut",),
]

# Who is let go while it reads nothing of what it is handed.
GONE_WITHOUT_READING: list[tuple[object, ...]] = [
    ("open", None, 0),
    ("all",),
    ("pause", 0),
    ("trip", 0, 0, "a"),
    ("turns", 60),
    ("detach", 0),
]


@FULL
@example(GONE_WITHOUT_READING, 8, history.PIECE_EVENTS, handover.READ_WHOLE_MAX)
@example(BACK_WITHOUT_READING, 64, history.PIECE_EVENTS, handover.READ_WHOLE_MAX)
@example(TWICE_AT_ONCE, 8, history.PIECE_EVENTS, handover.READ_WHOLE_MAX)
@given(
    st.lists(ACTION, min_size=8, max_size=60),
    # Pages and gates that hold one frame or a few; pieces of a few events; a log that is read by subject.
    st.sampled_from([1 << 20, 8, 64]),
    st.sampled_from([history.PIECE_EVENTS, 3]),
    st.sampled_from([handover.READ_WHOLE_MAX, 2]),
)
def test_every_client_gets_each_message_once_and_in_order(
    actions: list[tuple[object, ...]], outbox_bytes_max: int, piece_events: int, read_whole_max: int
) -> None:
    with (
        patch.object(handover, "COLLECT_S", 0.0),
        patch.object(handover, "RETRY_S", 0.001),
        patch.object(handover, "PACE_S", 0.0),
        patch.object(handover, "READ_WHOLE_MAX", read_whole_max),
        patch.object(history, "PIECE_EVENTS", piece_events),
        asyncio.Runner() as runner,
    ):
        runner.run(play(actions, outbox_bytes_max))


def told(story: Callable[[World], Awaitable[None]]) -> None:
    async def playing() -> None:
        world = World()
        running = [asyncio.ensure_future(repair.run(node)) for node in world.nodes]
        await turns(2)
        try:
            world.open(None, 0)
            await turns(5)
            await story(world)
            await settled(world)
            for client in world.clients:
                assert client.received == world.expected(client)
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    with patch.object(handover, "COLLECT_S", 0.0), asyncio.Runner() as runner:
        runner.run(playing())


def test_a_group_left_while_away_is_received_up_to_the_leave() -> None:
    async def story(world: World) -> None:
        client = world.clients[0]
        world.store(client, session.Join(("a",)))
        world.call(selector.Client(client.id))  # 1, so that the cursor is behind the join
        await turns(10)
        assert client.received == [1]
        world.leave_connection(client, said=True)
        world.call(selector.Group("a"))  # 2
        world.store(client, session.Leave(("a",)))
        world.call(selector.Group("a"))  # 3
        world.resume(client, 1)
        await settled(world)
        assert client.received == [1, 2]

    told(story)


def test_a_session_is_taken_over_on_its_own_node_while_it_is_alive() -> None:
    async def story(world: World) -> None:
        client = world.clients[0]
        world.store(client, session.Join(("a",)))
        world.call(selector.Group("a"))
        await turns(10)
        old = client.receiver
        assert old is not None
        world.resume(client, 0)
        world.call(selector.Group("a"))
        world.call(selector.All())
        await settled(world)
        assert client.received == [1, 2, 3]
        assert old.hub is None
        assert not old.live
        hub = world.nodes[0].interest.hubs[HUB]
        assert hub.receivers == {client.id: client.receiver}
        assert hub.expected == 0

    told(story)


def test_who_is_handed_over_during_a_repair_does_not_begin_its_groups_for_others() -> None:
    async def story(world: World) -> None:
        world.open(None, 0)
        other, client = world.clients
        await turns(5)
        act(world, ("trip", 1, 0, "a"))
        world.log.disconnect()
        world.store(other, session.Join(("a",)))
        world.call(selector.Group("a"))
        world.log.reconnect()
        await settled(world)
        assert other.received[-1:] == client.received[-1:] == [world.calls]

    told(story)


def test_those_who_come_together_are_served_by_one_read() -> None:
    async def story(world: World) -> None:
        for _ in range(2):
            world.open("u", 0)
        await turns(5)
        act(world, ("everybody moves", 1))
        await settled(world)
        assert world.handovers[1].reads == 1
        assert world.handovers[1].resumed == 3

    told(story)


def test_a_call_whose_time_is_over_at_the_return_is_skipped() -> None:
    async def story(world: World) -> None:
        client = world.clients[0]
        world.leave_connection(client, said=True)
        to = selector.Client(client.id)
        for ttl_ms in (1, 60_000):
            event = invocation.requested(selector.resolve(to, None), to, "t", f"[{ttl_ms}]".encode(), ttl_ms=ttl_ms)
            world.log.store(SUBJECTS.inbox(client.id), world.author.write(event, actor="system:test"))
        world.log._now_us = lambda: world.author.now_us() + 1_000_000
        world.resume(client, 1)
        await turns(50)
        while world.handovers[1]._tasks:
            await turns(5)
        assert client.received == [60_000]
        client.received = world.expected(client)

    told(story)
