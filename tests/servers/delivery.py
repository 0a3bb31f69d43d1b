"""Delivery without sockets: one dispatcher over a log in memory, peers that note what they are given, and the truth."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

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
        self.hole = self.vanished = False

    def vanish(self) -> None:
        """Its connection ends, and the log is not told."""
        self.vanished = True
        self.world.dispatcher.interest.release(self.receiver)

    def _own(self, _receiver: Receiver, event: session.Event, _state: session.State, _sequence: int) -> None:
        if isinstance(event, session.Closed):
            self.world.dispatcher.interest.release(self.receiver)

    def _hole(self, _receiver: Receiver, _sequence: int) -> None:
        self.hole = True
        self.world.dispatcher.interest.release(self.receiver)


class World:
    def __init__(self, log: MemoryEventLog | None = None) -> None:
        self.log = log or MemoryEventLog()
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
                peer.receiver.expect_group(group)
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
        self.calls += store_call(self.log, self.author, to, caller.id if caller is not None else None, self.calls + 1)

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
            if peer.vanished and not holes_allowed:
                assert given_ == must[: len(given_)]
            elif peer.hole:
                assert holes_allowed, f"{peer.id} was told of a hole although nothing was dropped"
                assert given_ == sorted(set(given_))
                assert set(given_) <= set(must)
            elif holes_allowed:
                # Nobody can know of a call that was dropped right before the session ended.
                assert given_ == (must if peer.receiver.live else sorted(set(given_) & set(must)))
            else:
                assert given_ == must, f"{peer.id} was given {given_}, must get {must}"


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


@asynccontextmanager
async def running(log: MemoryEventLog | None = None) -> AsyncIterator[World]:
    """A world whose dispatcher is kept right, as in a process."""
    world = World(log)
    services = asyncio.ensure_future(repair.run(world.dispatcher))
    await turns(2)
    try:
        yield world
        assert not services.done(), f"delivery ended: {services.exception()!r}"
    finally:
        services.cancel()
        await asyncio.gather(services, return_exceptions=True)


def store_call(log: MemoryEventLog, author: Author, to: selector.Selector, caller: str | None, number: int) -> int:
    """Store a call that carries its number; gives how many were written (none where nobody can be meant)."""
    route = selector.resolve(to, caller)
    if route.kind == "none":
        return 0
    event = invocation.requested(route, to, "t", f"[{number}]".encode())
    subject = {
        "all": SUBJECTS.all(),
        "many": SUBJECTS.many(),
        "group": SUBJECTS.group(route.name or "x"),
        "user": SUBJECTS.user(route.name or "x"),
        "inbox": SUBJECTS.inbox(route.name or "x"),
    }[route.kind]
    log.store(subject, author.write(event, actor="system:test"))
    return 1
