"""Delivery held against the audience: whatever is lost, cut or overtaken, each session gets what the log says it must.

A history of opens, joins, leaves, closes and calls runs on a log in memory under one dispatcher, while live messages
are dropped and the connection goes and comes. Then every session was given exactly what ``events.audience`` says, once
and in order, or it was told of a hole and given nothing out of order before.
"""

import asyncio
import time

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from events import audience, codec, invocation, selector, session, subjects
from events.ids import HubName, SessionId
from service.delivery import repair
from service.delivery.feed import Dispatcher
from service.delivery.interest import Receiver
from service.delivery.outbox import Outbox
from service.log.author import Author
from service.log.memory import MemoryEventLog

HUB = HubName("h")
SUBJECTS = subjects.HubSubjects(HUB, 1)
GROUPS = ["a", "b", "c"]
USERS = [None, "u", "v"]


class Transport(asyncio.WriteTransport):
    def __init__(self) -> None:
        super().__init__()
        self.frames: list[int] = []

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.frames.append(int(bytes(data)))

    def get_write_buffer_size(self) -> int:
        return 0

    def abort(self) -> None:
        raise AssertionError("nobody is slow here")


class Peer:
    """A local session: its receiver, what it was given, and whether it was told of a hole."""

    def __init__(self, world: "World", user: str | None) -> None:
        self.world = world
        self.id = SessionId(f"s{len(world.peers)}")
        self.user = user
        self.transport = Transport()
        self.outbox = Outbox(self.transport, 1 << 20, lambda: None)
        self.receiver = Receiver(self.id, f"c-{self.id}", user, self.outbox, self._own, self._hole)
        self.hole = False
        self.ended_at: int | None = None

    def _own(self, event: session.Event, _state: session.State, _sequence: int) -> None:
        if isinstance(event, session.Closed):
            self.world.dispatcher.interest.release(self.receiver)

    def _hole(self, _sequence: int) -> None:
        self.hole = True
        self.world.dispatcher.interest.release(self.receiver)


class World:
    def __init__(self) -> None:
        self.log = MemoryEventLog()
        self.dispatcher = Dispatcher(
            0, self.log, self.log, lambda _kind, _target, arguments, _position: arguments[1:-1]
        )
        self.author = Author()
        self.peers: list[Peer] = []
        self.calls = 0

    # -- what happens

    def open(self, user: str | None) -> None:
        peer = Peer(self, user)
        self.peers.append(peer)
        self.dispatcher.interest.expect(SUBJECTS, peer.receiver)
        self.command(peer, session.Open("n", "i", f"c-{peer.id}", user))
        peer.outbox.uncork(b"0")

    def join(self, peer: Peer, groups: list[str], *, here: bool) -> None:
        """A join: made by this node, which then hears the groups beforehand, or anywhere else."""
        if here and self.log.connected and peer.receiver.hub is not None:
            for group in groups:
                peer.receiver.hub.expect_group(group)
            self.command(peer, session.Join(tuple(groups)), actor=f"session:{peer.id}")
        else:
            self.command(peer, session.Join(tuple(groups)))

    def command(self, peer: Peer, command: session.Command, actor: str = "system:test") -> None:
        subject = SUBJECTS.session(peer.id)
        last = self.log._partitions[0].last_of(subject)
        state = codec.session_state(last)
        if state.status == "closed" or (state.status == "none" and not isinstance(command, session.Open)):
            return
        if isinstance(command, session.Leave | session.Close):
            # A departure that nobody hears of lets calls right behind it through, and nothing can take those back.
            self.log._dropping = 0
        for event in session.decide(state, command):
            self.log.store(subject, self.author.write(event, actor=actor))

    def call(self, to: selector.Selector, caller: Peer | None) -> None:
        try:
            route = selector.resolve(to, caller.id if caller is not None else None)
        except Exception as exc:
            raise AssertionError(f"{to} does not resolve") from exc
        if route.kind == "none":
            return
        self.calls += 1
        event = invocation.requested(route, to, "t", f"[{self.calls}]".encode())
        subject = {
            "all": SUBJECTS.all(),
            "many": SUBJECTS.many(),
            "group": SUBJECTS.group(route.name or "x"),
            "user": SUBJECTS.user(route.name or "x"),
            "inbox": SUBJECTS.inbox(route.name or "x"),
        }[route.kind]
        self.log.store(subject, self.author.write(event, actor="system:test"))

    # -- what must be true afterwards

    def expected(self, peer: Peer) -> list[int]:
        life = audience.Life(peer.id)
        events = self.log._partitions[0].events
        own = SUBJECTS.session(peer.id)
        for recorded in events:
            if recorded.subject == own:
                event = codec.decode(recorded.payload)[1]
                assert isinstance(event, session.Event)
                life.apply(event, recorded.sequence)
        must = []
        for recorded in events:
            event = codec.decode(recorded.payload)[1]
            if isinstance(event, invocation.Requested):
                subject = subjects.parse(recorded.subject)
                if audience.receives(life, subject, recorded.sequence, event):
                    must.append(int(bytes(event.arguments)[1:-1]))
        return must

    def check(self, *, holes_allowed: bool) -> None:
        for peer in self.peers:
            given_ = peer.transport.frames[1:]  # the first is the answer to the handshake
            must = self.expected(peer)
            if peer.hole:
                assert holes_allowed, f"{peer.id} was told of a hole although nothing was dropped"
                assert given_ == sorted(set(given_))
                assert set(given_) <= set(must)
            elif holes_allowed:
                # Nobody can know of a call that was dropped right before the session ended.
                assert given_ == (must if peer.receiver.live else sorted(set(given_) & set(must)))
            else:
                assert given_ == must, f"{peer.id} was given {given_}, must get {must}"


PEER = st.integers(0, 5)
GROUP_LIST = st.lists(st.sampled_from(GROUPS), min_size=1, max_size=3)
ACTION = st.one_of(
    st.tuples(st.just("open"), st.sampled_from(USERS)),
    st.tuples(st.just("join"), PEER, GROUP_LIST, st.booleans()),
    st.tuples(st.just("leave"), PEER, GROUP_LIST),
    st.tuples(st.just("close"), PEER),
    st.tuples(st.just("all"), PEER),
    st.tuples(st.just("others"), PEER),
    st.tuples(st.just("group"), st.sampled_from(GROUPS), PEER),
    st.tuples(st.just("groups"), GROUP_LIST, PEER),
    st.tuples(st.just("client"), PEER),
    st.tuples(st.just("clients"), st.lists(PEER, min_size=1, max_size=4)),
    st.tuples(st.just("user"), st.sampled_from(["u", "v"])),
    st.tuples(st.just("turns"), st.integers(1, 6)),
    st.tuples(st.just("cut")),
    st.tuples(st.just("heal")),
    st.tuples(st.just("reap")),
    # What only hurts close together, so that it is tried often.
    st.tuples(st.just("join and call"), PEER, st.sampled_from(GROUPS)),
    st.tuples(st.just("leave and call"), PEER, st.sampled_from(GROUPS)),
    st.tuples(st.just("lose a join"), PEER, st.sampled_from(GROUPS)),
    st.tuples(st.just("lose an open"), st.sampled_from(USERS)),
    st.tuples(st.just("lose a call"), st.sampled_from(GROUPS), PEER),
    st.tuples(st.just("drop")),
)


def act(world: World, action: tuple[object, ...], *, drops: bool) -> None:
    def peer(number: object) -> Peer:
        assert isinstance(number, int)
        return world.peers[number % len(world.peers)]

    if not world.peers and action[0] not in {"open", "cut", "heal"}:
        return
    match action:
        case ("open", user):
            if world.log.connected:  # a node that is cut off opens no sessions
                world.open(user)  # type: ignore[arg-type]
        case ("join", number, groups, here):
            world.join(peer(number), list(groups), here=bool(here))  # type: ignore[call-overload]
        case ("leave", number, groups):
            world.command(peer(number), session.Leave(tuple(groups)))  # type: ignore[arg-type]
        case ("close", number):
            world.command(peer(number), session.Close("kicked"))
        case ("all", number):
            world.call(selector.All(), peer(number))
        case ("others", number):
            world.call(selector.Others(), peer(number))
        case ("group", group, number):
            world.call(selector.Group(str(group), (peer(number).id,)), None)
        case ("groups", groups, number):
            world.call(selector.Groups(tuple(groups), (peer(number).id,)), None)  # type: ignore[arg-type]
        case ("client", number):
            world.call(selector.Client(peer(number).id), None)
        case ("clients", numbers):
            world.call(selector.Clients(tuple(peer(n).id for n in numbers)), None)  # type: ignore[attr-defined]
        case ("user", user):
            world.call(selector.User(str(user)), None)
        case ("cut",):
            world.log.disconnect()
        case ("heal",):
            world.log.reconnect()
        case ("reap",) if world.dispatcher.live:
            world.dispatcher.interest.reap(time.monotonic() + 1_000)
        case ("join and call", number, group):
            world.join(peer(number), [str(group)], here=False)
            world.call(selector.Group(str(group)), None)
        case ("leave and call", number, group):
            world.command(peer(number), session.Leave((str(group),)))
            world.call(selector.Group(str(group)), None)
        case ("drop",) if drops and world.log.connected:
            world.log.drop_next_live()
        case ("lose a join", number, group) if drops and world.log.connected:
            world.log.drop_next_live()
            world.join(peer(number), [str(group)], here=True)
        case ("lose an open", user) if drops and world.log.connected:
            world.log.drop_next_live()
            world.open(user)  # type: ignore[arg-type]
        case ("lose a call", group, number) if drops and world.log.connected:
            world.log.drop_next_live()
            world.call(selector.Group(str(group)), None)
            world.call(selector.Client(peer(number).id), None)


HISTORY = st.lists(ACTION, min_size=5, max_size=60)


async def turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def settled(world: World) -> None:
    """Connected, live, and with nothing that the tail check would still find."""
    world.log._dropping = 0
    world.log.reconnect()
    async with asyncio.timeout(5):
        await turns(20)
        while True:
            while not world.dispatcher.live:
                await turns(1)
            before = world.dispatcher.counters.tail_repairs
            await repair.look_behind(world.dispatcher, list(world.dispatcher.interest.chains()))
            await turns(5)
            if world.dispatcher.live and world.dispatcher.counters.tail_repairs == before:
                return


async def play(actions: list[tuple[object, ...]], *, drops: bool) -> None:
    world = World()
    running = asyncio.ensure_future(repair.run(world.dispatcher))
    await turns(2)
    try:
        for action in actions:
            if action[0] == "turns":
                await turns(int(action[1]))  # type: ignore[call-overload]
            else:
                act(world, action, drops=drops)
        await settled(world)
        world.check(holes_allowed=drops)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


FULL = settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))


@FULL
@given(HISTORY)
def test_nothing_is_missed_when_the_connection_goes_and_comes(actions: list[tuple[object, ...]]) -> None:
    with asyncio.Runner() as runner:
        runner.run(play(actions, drops=False))


@FULL
@given(HISTORY)
def test_what_the_feed_drops_is_delivered_in_order_or_said(actions: list[tuple[object, ...]]) -> None:
    with asyncio.Runner() as runner:
        runner.run(play(actions, drops=True))


def test_the_next_message_reveals_a_lost_one_and_both_come_in_order() -> None:
    async def playing() -> None:
        world = World()
        running = asyncio.ensure_future(repair.run(world.dispatcher))
        await turns(2)
        world.open(None)
        await turns(3)
        world.log.drop_next_live()
        world.call(selector.All(), None)
        world.call(selector.All(), None)
        async with asyncio.timeout(2):
            while len(world.peers[0].transport.frames) < 3:
                await turns(1)
        assert world.peers[0].transport.frames == [0, 1, 2]
        assert world.dispatcher.counters.repaired == 2
        assert world.dispatcher.counters.tail_repairs == world.dispatcher.counters.holes == 0
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    with asyncio.Runner() as runner:
        runner.run(playing())


def test_a_loss_that_others_have_overtaken_is_said_and_not_skipped() -> None:
    async def playing() -> None:
        world = World()
        running = asyncio.ensure_future(repair.run(world.dispatcher))
        await turns(2)
        world.open(None)
        world.open(None)
        world.join(world.peers[0], ["a"], here=True)
        await turns(5)
        world.log.drop_next_live()
        world.call(selector.All(), None)
        world.call(selector.Client(world.peers[0].id), None)
        await turns(3)
        assert world.peers[0].transport.frames == [0, 2]
        await settled(world)
        assert world.peers[0].hole, "it was given 2, so 1 can no longer come in order"
        assert not world.peers[1].hole
        assert world.peers[1].transport.frames == [0, 1]
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    with asyncio.Runner() as runner:
        runner.run(playing())
