"""Single histories in which the feed loses something, or a group is new to the node."""

import asyncio
from time import monotonic

import pytest

from events import invocation, selector, session
from events.envelope import Recorded
from service.delivery import backlog, repair
from service.delivery.feed import Dispatcher
from service.delivery.interest import Chain
from service.delivery.outbox import Outbox
from service.log.memory import MemoryEventLog
from tests.servers.delivery import SUBJECTS, Peer, Transport, World, running, settled, turns


async def given(world: World, number: int, frames: list[int]) -> None:
    """Wait until a peer was given that many; they must be these, in this order."""
    async with asyncio.timeout(2):
        while len(world.peers[number].transport.frames) < len(frames):
            await turns(1)
    assert world.peers[number].transport.frames == frames


async def test_the_next_message_reveals_a_lost_one_and_both_come_in_order() -> None:
    async with running() as world:
        world.open(None)
        await turns(3)
        world.log.drop_next_live()
        world.call(selector.All(), None)
        world.call(selector.All(), None)
        await given(world, 0, [0, 1, 2])
        assert world.dispatcher.counters.repaired == 2
        assert world.dispatcher.counters.tail_repairs == world.dispatcher.counters.holes == 0


async def test_a_loss_that_others_have_overtaken_is_said_and_not_skipped() -> None:
    async with running() as world:
        world.open(None)
        world.open(None)
        world.join(world.peers[0], ["a"], here=True)
        await turns(5)
        world.log.drop_next_live()
        world.call(selector.All(), None)
        world.call(selector.Client(world.peers[0].id), None)
        await given(world, 0, [0, 2])
        await settled(world)
        assert world.peers[0].hole, "it was given 2, so 1 can no longer come in order"
        assert not world.peers[1].hole
        assert world.peers[1].transport.frames == [0, 1]


async def test_a_late_join_to_several_groups_that_have_moved_on_is_one_hole() -> None:
    async with running() as world:
        for _ in range(2):
            world.open(None)
        world.join(world.peers[0], ["a", "b"], here=True)
        await turns(5)
        world.log.drop_next_live()
        world.join(world.peers[1], ["a", "b"], here=True)
        world.call(selector.Group("a"), None)
        world.call(selector.Group("b"), None)
        await given(world, 0, [0, 1, 2])
        await settled(world)
        assert world.peers[1].hole
        assert world.dispatcher.counters.holes == 1
        hub = world.dispatcher.interest.hubs["h"]
        assert not any(world.peers[1].id in chain.members for chain in hub.chains.values()), "it has left everything"


async def test_a_late_join_that_a_call_on_several_groups_has_overtaken_is_a_hole() -> None:
    async with running() as world:
        world.open(None)
        await turns(3)
        world.log.drop_next_live()
        world.join(world.peers[0], ["a"], here=False)
        world.call(selector.Groups(("a", "b")), None)
        await turns(3)
        await settled(world)
        assert world.peers[0].hole, "it was a member, and the call passed before anybody knew"
        world.check(holes_allowed=True)


async def test_the_end_of_a_session_is_not_taken_for_a_lost_message() -> None:
    async with running() as world:
        world.open(None)
        world.open(None)
        await turns(3)
        chains = list(world.dispatcher.interest.chains())
        world.dispatcher.interest.release(world.peers[0].receiver)
        world.command(world.peers[0], session.Close("transport_error"))
        await repair.look_behind(world.dispatcher, chains)
        assert world.dispatcher.live
        assert world.dispatcher.counters.tail_repairs == 0


async def test_a_last_message_that_is_lost_is_found_though_the_dispatcher_was_busy_when_it_was_looked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(repair, "TAIL_EVERY_S", 0.02)
    looked = repair.look_behind

    async def busy_at_first(dispatcher: Dispatcher, chains: list[Chain]) -> bool:
        dispatcher.hold("new group", [])
        monkeypatch.setattr(repair, "look_behind", looked)
        return await looked(dispatcher, chains)

    monkeypatch.setattr(repair, "look_behind", busy_at_first)
    async with running() as world:
        world.open(None)
        await turns(3)
        world.log.drop_next_live()
        world.call(selector.All(), None)
        async with asyncio.timeout(2):
            while len(world.peers[0].transport.frames) < 2:  # noqa: ASYNC110  nothing tells
                await asyncio.sleep(0.005)
        assert world.dispatcher.counters.tail_repairs == 1


class CountingLog(MemoryEventLog):
    """Counts what is read, and how many lasts are asked for at once."""

    def __init__(self) -> None:
        super().__init__()
        self.lasts: list[int] = []
        self.single = 0

    async def last(self, subject: str) -> Recorded | None:
        self.single += 1
        return await super().last(subject)

    async def last_many(self, subjects, up_to=None):
        wanted = list(subjects)
        self.lasts.append(len(wanted))
        return await super().last_many(wanted, up_to)


async def test_a_join_made_elsewhere_reads_its_own_group_only() -> None:
    log = CountingLog()
    async with running(log) as world:
        for _ in range(20):
            world.open(None)
        await turns(3)
        world.join(world.peers[0], ["a"], here=False)
        world.call(selector.Group("a"), None)  # nobody here hears it: the group is new
        world.call(selector.All(), None)
        await given(world, 0, [0, 1, 2])
        await given(world, 1, [0, 2])
        assert world.dispatcher.counters.holds == 1
        assert (log.single, log.lasts) == (1, [])


async def test_joins_that_come_while_one_is_looked_into_are_looked_into_together() -> None:
    log = CountingLog()
    async with running(log) as world:
        for _ in range(20):
            world.open(None)
        await turns(3)
        for number, peer in enumerate(world.peers):
            world.join(peer, [f"g{number}", "a"], here=False)
            world.call(selector.Group(f"g{number}"), None)
        world.call(selector.Group("a"), None)
        for number in range(20):
            await given(world, number, [0, number + 1, 21])
        assert world.dispatcher.counters.holds <= 2
        assert not any(peer.hole for peer in world.peers)
        await settled(world)
        world.check(holes_allowed=False)


def coming(world: World, groups: tuple[str, ...]) -> tuple[Peer, int]:
    """A session of another node that is about to come here, as it is loaded; what happens to it next is not heard."""
    peer = Peer(world, None)
    world.peers.append(peer)
    world.command(peer, session.Open("elsewhere", "i", "c-elsewhere", None, resumable=True))
    loaded = world.log._partitions[0].last
    world.command(peer, session.Join(groups))
    return peer, loaded


def attach(world: World, peer: Peer) -> None:
    world.command(peer, session.Attach("n", "i", f"c-{peer.id}", generation=1, now_us=0, ttl_us=1))
    peer.outbox.uncork(b"0")


async def test_a_session_that_comes_with_a_join_nobody_heard_here_makes_no_hole_for_who_left_its_group() -> None:
    """What its group was told before it came was heard here, and was others' to receive."""
    async with running() as world:
        world.open(None)
        world.join(world.peers[0], ["a"], here=True)
        peer, loaded = coming(world, ("a",))
        world.call(selector.Group("a"), None)
        world.command(world.peers[0], session.Leave(("a",)))
        await given(world, 0, [0, 1])
        world.dispatcher.interest.expect(SUBJECTS, peer.receiver, loaded)
        attach(world, peer)  # its own subject has moved on since it was loaded: that is looked into
        world.call(selector.Group("a"), None)
        await given(world, 1, [0, 2])
        await settled(world)
        assert world.dispatcher.counters.repaired > 0
        assert world.dispatcher.counters.holes == 0
        assert world.peers[0].transport.frames == [0, 1]


async def test_a_session_that_came_while_nothing_was_heard_is_given_its_new_group_in_order() -> None:
    async with running() as world:
        world.open(None)
        await turns(3)
        peer, loaded = coming(world, ())
        world.dispatcher.interest.expect(SUBJECTS, peer.receiver, loaded)
        world.command(peer, session.Join(("a",)))  # heard, but it is not of this node yet
        await turns(3)
        world.log.disconnect()
        attach(world, peer)
        world.call(selector.Group("a"), None)
        world.call(selector.All(), None)
        world.log.reconnect()
        await given(world, 1, [0, 1, 2])
        await settled(world)
        assert world.dispatcher.counters.holes == 0


async def test_who_was_handed_over_beyond_a_call_has_no_hole_there_though_it_has_left_the_group() -> None:
    async with running() as world:
        for number in range(2):
            world.open(None)
            world.join(world.peers[number], ["a"], here=True)
        await turns(3)
        world.log.drop_next_live()
        world.call(selector.Group("a"), None)
        receiver = world.peers[0].receiver
        receiver.since = receiver.delivered = world.log._partitions[0].last  # as a hand-over does, of what it has read
        world.command(world.peers[0], session.Leave(("a",)))
        await turns(3)
        world.dispatcher.hold("tail", None)
        await given(world, 1, [0, 1])
        await settled(world)
        assert world.dispatcher.counters.holes == 0


async def test_what_was_said_to_a_group_before_anyone_here_was_in_it_stays_unsaid() -> None:
    async with running() as world:
        world.open(None)
        await turns(3)
        world.call(selector.Group("a"), None)
        world.join(world.peers[0], ["a"], here=False)
        world.call(selector.Group("a"), None)
        await given(world, 0, [0, 2])
        await settled(world)
        world.check(holes_allowed=False)


async def test_a_user_is_heard_while_its_session_opens_and_dropped_after_it_left() -> None:
    async with running() as world:
        interest = world.dispatcher.interest
        world.open("u")
        world.log.drop_next_live()
        world.open("v")  # its `opened` is lost, so it is still expected
        await turns(3)
        interest.release(world.peers[0].receiver)
        interest.reap(1e12)
        hub = interest.hubs["h"]
        assert SUBJECTS.user("u") not in hub.chains, "although another session of the hub is being opened"
        assert SUBJECTS.user("v") in hub.chains
        interest.release(world.peers[1].receiver)
        interest.reap(1e12)
        assert interest.hubs == {}
        assert world.log.subscriptions == {}


class Socket(Transport):
    """Takes what was written with every turn of the loop, as a client's that reads."""

    def __init__(self) -> None:
        super().__init__()
        self.unsent = 0

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self.unsent == 0:
            asyncio.get_running_loop().call_soon(self._send)
        self.unsent += len(data)
        self.frames.append(int(bytes(data)[:12]))

    def _send(self) -> None:
        self.unsent = 0

    def get_write_buffer_size(self) -> int:
        return self.unsent


@pytest.mark.parametrize("how", ["cut", "held"])
async def test_catching_up_on_much_does_not_make_a_slow_client_of_one_who_reads(how: str) -> None:
    async with running() as world:
        world.open(None)
        await turns(3)
        socket, slow = Socket(), []
        outbox = Outbox(socket, 256 * 1024, lambda: slow.append(1))
        outbox.uncork(b"0")
        world.peers[0].receiver.outbox, world.peers[0].receiver.deliver = outbox, outbox.write
        if how == "cut":
            world.log.disconnect()
        else:
            world.dispatcher.hold("test", [])
        piece = " " * 5_000
        for number in range(1, 401):
            route = selector.resolve(selector.All(), None)
            event = invocation.requested(route, selector.All(), "t", f"[{number:12}{piece}]".encode())
            world.log.store(SUBJECTS.all(), world.author.write(event, actor="system:test"))
        world.log.reconnect()
        async with asyncio.timeout(5):
            while len(socket.frames) < 401 and not slow:  # noqa: ASYNC110  nothing tells
                await asyncio.sleep(0)
        assert not slow, f"2 MB at once, cut after {len(socket.frames)}"
        assert socket.frames == list(range(401))
        assert world.dispatcher.live


@pytest.mark.parametrize("bound", ["MESSAGES_MAX", "BYTES_MAX"])
async def test_what_is_too_much_to_be_kept_is_read_from_the_log(monkeypatch: pytest.MonkeyPatch, bound: str) -> None:
    async with running() as world:
        world.open(None)
        await turns(3)
        monkeypatch.setattr(backlog, bound, 3)
        world.dispatcher.hold("test", [])  # nothing is in doubt but what does not fit
        for _ in range(10):
            world.call(selector.All(), None)
        await given(world, 0, list(range(11)))
        await settled(world)
        assert world.dispatcher.counters.repaired == 10


async def test_another_leader_is_a_reason_to_look_into_the_log() -> None:
    """The former one may have stored a last message that it did not live to republish."""
    async with running() as world:
        world.open(None)
        await turns(3)
        world.log.drop_next_live()
        world.call(selector.All(), None)
        await turns(20)
        assert world.peers[0].transport.frames == [0]
        world.log.change_leader(0)
        assert not world.dispatcher.live, "nothing may be delivered before it was looked"
        await settled(world)
        world.check(holes_allowed=False)
        assert world.peers[0].transport.frames == [0, 1]
        assert world.dispatcher.counters.tail_repairs == 0


async def test_a_lease_that_was_renewed_late_is_a_reason_too() -> None:
    """A node on the wrong side of a partition keeps its connection, hears nothing and can renew nothing."""
    async with running() as world:
        world.open(None)
        await turns(3)
        now = world.dispatcher.holds_until_s = monotonic() + 8
        for passed_s in (2, 4.5):
            world.dispatcher.renewed(now + passed_s)
            assert world.dispatcher.live
        world.log.drop_next_live()
        world.call(selector.All(), None)
        world.dispatcher.renewed(now + 9)
        await settled(world)
        assert world.peers[0].transport.frames == [0, 1]
        assert world.dispatcher.counters.tail_repairs == 0


async def test_a_leader_that_does_not_know_what_was_heard_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repair, "RETRY_S", 0.001)
    async with running() as world:
        world.open(None)
        world.call(selector.All(), None)
        await turns(5)
        true = world.log.last_sequence
        asked = 0

        async def former(partition: int) -> int:
            nonlocal asked
            asked += 1
            return (await true(partition)) - (1 if asked < 3 else 0)

        monkeypatch.setattr(world.log, "last_sequence", former)
        world.log.change_leader(0)
        async with asyncio.timeout(5):
            while not world.dispatcher.live:  # noqa: ASYNC110  nothing tells
                await asyncio.sleep(0)
        assert asked == 3
        assert world.peers[0].transport.frames == [0, 1]


async def test_a_group_that_another_session_is_about_to_join_is_not_taken_for_heard_since_ones_own_join() -> None:
    """Its own: asked for on the connection that the session had before, which was another node's."""
    async with running() as world:
        for _ in range(2):
            world.open(None)
        await turns(5)
        one, other = world.peers
        world.command(one, session.Join(("a",)), actor=f"session:{one.id}")
        world.call(selector.Group("a"), None)
        other.receiver.expect_group("a")
        world.call(selector.All(), None)
        await settled(world)
        assert one.transport.frames == [0, 1, 2]
        assert other.transport.frames == [0, 2]
        assert world.dispatcher.counters.holes == 0
        assert world.dispatcher.counters.held_for["chain"] == world.dispatcher.counters.tail_repairs == 0


async def test_a_group_that_was_not_heard_all_the_time_since_its_join_was_asked_for_is_read() -> None:
    async with running() as world:
        world.open(None)
        await turns(5)
        (one,) = world.peers
        one.receiver.expect_group("a")
        world.dispatcher.interest.reap(monotonic() + 1_000)  # the log takes long to answer
        world.command(one, session.Join(("a",)), actor=f"session:{one.id}")
        world.call(selector.Group("a"), None)
        one.receiver.expect_group("a")  # it is impatient, and asks again
        world.call(selector.All(), None)
        await settled(world)
        assert one.transport.frames == [0, 1, 2]
        assert world.dispatcher.counters.holes == 0
        assert one.receiver.asked is None


async def test_a_join_by_the_api_is_not_taken_for_ones_own_that_was_asked_for_later() -> None:
    async with running() as world:
        world.open(None)
        await turns(5)
        (one,) = world.peers
        world.join(one, ["a"], here=False)
        world.call(selector.Group("a"), None)
        one.receiver.expect_group("a")
        world.call(selector.All(), None)
        await settled(world)
        assert one.transport.frames == [0, 1, 2]
        assert world.dispatcher.counters.holes == 0
        assert world.dispatcher.counters.held_for["chain"] == world.dispatcher.counters.tail_repairs == 0


async def test_what_the_log_forgets_while_nothing_is_heard_is_a_hole_for_everybody_and_no_gap() -> None:
    async with running() as world:
        for _ in range(2):
            world.open(None)
        await turns(5)
        world.call(selector.All(), None)
        await turns(5)
        world.open(None)
        world.log.disconnect()  # before it has come by
        world.call(selector.All(), None)
        world.call(selector.All(), None)
        world.log.forget(0, world.log._partitions[0].last)
        await settled(world)
        assert [peer.hole for peer in world.peers] == [True, True, True]
        assert [peer.transport.frames for peer in world.peers] == [[0, 1], [0, 1], [0]]


async def test_what_the_log_forgets_of_others_while_nothing_is_said_here_is_no_hole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(repair, "TAIL_EVERY_S", 0.0)
    async with running() as world:
        world.open(None)
        await turns(5)
        for _ in range(3):
            world.call(selector.Group("elsewhere"), None)
        async with asyncio.timeout(2):
            while world.dispatcher.sure < 4:
                await turns(1)
        world.log.forget(0, 5)
        world.log.disconnect()
        world.call(selector.All(), None)
        await settled(world)
        assert not world.peers[0].hole
        assert world.peers[0].transport.frames == [0, 4]


async def test_what_the_log_forgot_before_a_node_began_is_no_hole_for_who_comes_to_it() -> None:
    log = MemoryEventLog()
    before = World(log)
    for _ in range(5):
        before.call(selector.All(), None)
    log.forget(0, 4)
    async with running(log=log) as world:
        await turns(5)
        world.log.disconnect()
        world.open(None)
        await settled(world)
        assert not world.peers[0].hole
        world.call(selector.All(), None)
        await given(world, 0, [0, 1])
