"""Delivery on three servers: a leader that dies with what it stored and did not republish, and other losses on the way.

The tail check, which would find all of this within ten seconds, is switched off: what is shown is that nobody waits
for it.
"""

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from events import selector
from events.ids import HubName
from events.subjects import HubSubjects
from lab.nats_cluster import NatsCluster
from service.delivery import repair
from service.delivery.feed import Dispatcher
from service.delivery.interest import Receiver
from service.delivery.outbox import Outbox
from service.log.author import Author
from service.log.jetstream import JetStreamLog, feed, jetstream_log
from service.log.jetstream.streams import LEASES
from service.nodes.lease import SUSPENDED_AFTER_S, Lease
from service.sessions.manager import session_manager
from service.sessions.registry import NewSession
from service.sessions.router import Call
from tests.servers.cluster import ON_ONE_LOOP, REPLICAS, clean_cluster, cluster, migrate_cluster
from tests.servers.delivery import Transport
from tests.servers.event_logs import until

__all__ = ["clean_cluster", "cluster"]
pytestmark = ON_ONE_LOOP
FAILOVER_S = 30.0


class Node:
    """A dispatcher with sessions, connected to one server; and another process, connected to another one."""

    def __init__(self, servers: NatsCluster, hub: str, here: JetStreamLog, elsewhere: JetStreamLog) -> None:
        self.servers = servers
        self.here, self.elsewhere = here, elsewhere
        self.dispatcher = Dispatcher(0, here, here, lambda _kind, _target, arguments, _position: arguments[1:-1])
        self.transports: list[Transport] = []
        self.holes: list[int] = []
        self._subjects = HubSubjects(HubName(hub), 1)
        self._mine, self._theirs = session_manager(hub, here), session_manager(hub, elsewhere)

    async def open(self) -> None:
        session, transport = Author().new_session(), Transport()
        outbox = Outbox(transport, 1 << 20, lambda: pytest.fail("nobody is slow"))
        receiver = Receiver(session, f"c-{session}", None, outbox, lambda *_: None, self._hole)
        outbox.uncork(b"0")
        self.transports.append(transport)
        self.dispatcher.interest.expect(self._subjects, receiver)
        await self._mine.sessions.register(NewSession(session, f"c-{session}"))

    def _hole(self, _receiver: Receiver, sequence: int) -> None:
        self.holes.append(sequence)

    async def call(self, number: int) -> None:
        await self._theirs.router.invoke(Call(selector.All(), "say", b"[%d]" % number, actor="system:api"))

    async def given(self, *numbers: int) -> None:
        await until(lambda: all(one.frames[1:] == [*numbers] for one in self.transports), FAILOVER_S)
        assert not self.holes
        assert self.dispatcher.counters.tail_repairs == 0


@pytest_asyncio.fixture(loop_scope="module")
async def node(clean_cluster: NatsCluster, unique_hub: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Node]:
    monkeypatch.setattr(repair, "TAIL_EVERY_S", 7200.0)
    servers = clean_cluster
    await migrate_cluster(servers)
    leader, of_leases = await servers.leader_of("EV_0"), await servers.leader_of(LEASES)
    # Of the two that do not lead the log, the node is on one that need not be replaced as leader of anything.
    followers = sorted(set(range(REPLICAS)) - {leader}, key=lambda index: index == of_leases)
    urls = [servers.url_of(index) for index in followers]
    here = await jetstream_log(urls[0], name="here", replicas=REPLICAS)
    elsewhere = await jetstream_log(urls[1], name="elsewhere", replicas=REPLICAS)
    made = Node(servers, unique_hub, here, elsewhere)
    running = asyncio.ensure_future(repair.run(made.dispatcher))
    for _ in range(3):
        await made.open()
    await until(lambda: made.dispatcher.live)
    yield made
    assert not running.done()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await here.close()
    await elsewhere.close()


def server_of(servers: NatsCluster, log: JetStreamLog) -> int:
    url = log._client.connected_url
    assert url is not None
    return next(one.index for one in servers.nodes if one.port == url.port)


async def test_what_a_leader_stored_and_did_not_live_to_republish_is_delivered(node: Node) -> None:
    servers = node.servers
    leader = await servers.leader_of("EV_0")
    await node.call(1)
    await node.given(1)
    servers.mute(leader, server_of(servers, node.here))
    await node.call(2)  # stored by two of three, acknowledged to the caller, and on no way to this node
    assert node.transports[0].frames == [0, 1]
    await servers.kill(leader)
    servers.part(leader)  # what it was about to say goes with it
    servers.heal()
    await node.given(1, 2)
    await servers.restart(leader)


async def test_a_leader_that_hands_over_is_noticed_and_nothing_is_lost(node: Node) -> None:
    holds = node.dispatcher.counters.holds
    for number in range(1, 31):
        if number % 10 == 0:
            assert (await node.servers.ask("STREAM.LEADER.STEPDOWN.EV_0"))["success"]
        await node.call(number)
    await node.given(*range(1, 31))
    assert node.dispatcher.counters.holds > holds


async def test_without_advisories_the_leaders_name_tells(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    await node.here.last_sequence(0)
    seen: list[str] = []
    monkeypatch.setattr(feed, "LEADER_ELECTED", "nobody.says.")
    log = await jetstream_log(node.servers.url_of(server_of(node.servers, node.here)), name="deaf", replicas=REPLICAS)
    log.doubt(0, seen.append)
    await log.last_sequence(0)
    leader = await node.servers.leader_of("EV_0")
    assert (await node.servers.ask("STREAM.LEADER.STEPDOWN.EV_0"))["success"]
    await node.servers.leader_of("EV_0", besides=leader)
    assert seen == []
    await log.last_sequence(0)
    assert seen == ["leader changed"]
    await log.close()


async def test_a_lost_route_between_servers_is_noticed_though_the_leader_stays(node: Node) -> None:
    """What another server's clients write meanwhile is not heard here, and the next message would be the first sign."""
    servers, here = node.servers, server_of(node.servers, node.here)
    leader = await servers.leader_of("EV_0")
    servers.part(here)
    await until(lambda: not node.dispatcher.live)
    await node.call(1)
    assert node.transports[0].frames == [0]
    servers.heal()
    await node.given(1)
    assert await servers.leader_of("EV_0") == leader
    await servers.caught_up(here)


async def test_a_node_on_the_wrong_side_of_a_partition_goes_to_another_server(node: Node) -> None:
    """Before its lease is too old: nobody has to call it lost, and it misses nothing."""
    servers, here = node.servers, server_of(node.servers, node.here)
    lease = Lease("gw", "0", "", node.here, node.here, Author())
    renewals: list[float] = []

    def renewed(until_s: float) -> None:
        renewals.append(until_s)
        node.dispatcher.renewed(until_s)

    lease.on_renewed = renewed
    await lease.start()
    keeping = asyncio.ensure_future(lease.keep())
    servers.part(here)
    await node.call(1)
    await until(lambda: len(renewals) > 1, FAILOVER_S)
    assert renewals[1] - renewals[0] < SUSPENDED_AFTER_S
    assert server_of(servers, node.here) != here
    await node.given(1)
    servers.heal()
    keeping.cancel()
    await asyncio.gather(keeping, return_exceptions=True)
    await servers.ready()
    await servers.caught_up()
