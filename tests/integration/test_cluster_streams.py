"""What the streams are on three servers: their replicas, and connections that find the other servers."""

import asyncio
import os
from contextlib import aclosing

import pytest

from events.errors import LogDrifted, Misconfigured
from lab.nats_cluster import NatsCluster
from service.log.jetstream import jetstream_log, migrate_log
from service.log.port import Stored
from service.up.nats_server import NatsServer
from tests.servers.cluster import ON_ONE_LOOP, REPLICAS, clean_cluster, cluster, migrate_cluster
from tests.servers.event_logs import event, until
from tests.servers.nats import delete_all_streams

__all__ = ["clean_cluster", "cluster"]
pytestmark = ON_ONE_LOOP


async def test_migrate_moves_a_log_to_three_replicas_and_nobody_else_does(clean_cluster: NatsCluster) -> None:
    url = clean_cluster.url
    epoch = await migrate_log(url, random=os.urandom(3))
    for name in ("EV_0", "KV_hublog_leases"):
        assert (await clean_cluster.ask(f"STREAM.INFO.{name}"))["config"]["num_replicas"] == 1
    with pytest.raises(LogDrifted, match=r"EV_0\.num_replicas is 1, defined 3 \(HUBLOG_NATS_REPLICAS: set it to 1, or"):
        await jetstream_log(url, name="too many", replicas=REPLICAS)
    running = await jetstream_log(url, name="running meanwhile")
    assert await migrate_log(url, random=os.urandom(3), replicas=REPLICAS) == epoch
    await running.last_sequence(0)
    assert running._reader._replicas > 1  # it knows by itself that answers may be late now
    await running.close()
    for name in ("EV_0", "KV_hublog_leases"):
        assert (await clean_cluster.ask(f"STREAM.INFO.{name}"))["config"]["num_replicas"] == REPLICAS
    with pytest.raises(LogDrifted, match=r"KV_hublog_leases\.num_replicas is 3, defined 1"):
        await jetstream_log(url, name="too few")
    log = await jetstream_log(url, name="right", replicas=REPLICAS)
    assert await log.publish("ev.0.h.all", event()) == Stored(1)
    await log.close()


async def test_more_replicas_than_there_are_servers_is_a_setting_to_correct(
    clean_cluster: NatsCluster, nats_server: NatsServer
) -> None:
    await delete_all_streams(nats_server.url)
    with pytest.raises(Misconfigured, match=r"3 replicas \(HUBLOG_NATS_REPLICAS\) of EV_0: 10074"):
        await migrate_log(nats_server.url, random=os.urandom(3), replicas=3)
    with pytest.raises(Misconfigured, match=r"5 replicas \(HUBLOG_NATS_REPLICAS\) of EV_0: 10005"):
        await migrate_log(clean_cluster.url, random=os.urandom(3), replicas=5)


async def test_a_client_goes_on_with_servers_that_it_was_told_of(clean_cluster: NatsCluster) -> None:
    """Of one URL, with its credentials; what the cluster makes known has none."""
    await migrate_cluster(clean_cluster)
    log = await jetstream_log(clean_cluster.url_of(1), name="knows one", replicas=REPLICAS)
    await clean_cluster.kill(1)
    await until(lambda: not log.connected)
    await until(lambda: log.connected)
    assert await log.publish("ev.0.h.all", event()) == Stored(1)
    await log.close()
    await clean_cluster.restart(1)


async def test_a_follower_leaves_a_replica_that_gives_nothing_more(clean_cluster: NatsCluster) -> None:
    """Its consumer lives beside one replica; cut off from the leader, that one says that there is nothing, politely."""
    servers = clean_cluster
    await migrate_cluster(servers)
    leader = await servers.leader_of("EV_0")
    lagging, other = (node.index for node in servers.nodes if node.index != leader)
    writer = await jetstream_log(servers.url_of(leader), name="writer", replicas=REPLICAS)
    follower = await jetstream_log(servers.url_of(other), name="follower", replicas=REPLICAS)
    heard: list[int] = []

    async def follow() -> None:
        async with aclosing(follower.follow(0, 0)) as batches:
            async for batch in batches:
                heard.extend(one.sequence for one in batch)

    following = asyncio.ensure_future(follow())
    for sequence in range(1, 60):
        await writer.publish("ev.0.h.all", event())
        await until(lambda: heard[-1:] == [sequence])  # noqa: B023 - awaited here
        for name in (await servers.ask("CONSUMER.NAMES.EV_0"))["consumers"]:
            info = await servers.ask(f"CONSUMER.INFO.EV_0.{name}")
            if (info.get("cluster") or {}).get("leader") == servers.nodes[lagging].name:
                break
            await servers.ask(f"CONSUMER.DELETE.EV_0.{name}")
        else:
            continue
        break
    servers.mute(leader, lagging)
    last = (await writer.publish("ev.0.h.all", event())).sequence
    await until(lambda: heard[-1:] == [last], 30)
    assert heard == list(range(1, last + 1))
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)
    servers.part(lagging)
    servers.heal()
    await follower.close()
    await writer.close()
    await servers.ready()
    await servers.caught_up()
