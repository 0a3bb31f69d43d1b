"""Three real nats-servers in a cluster, for tests; the machinery is the lab's (``lab/nats_cluster.py``).

``cluster`` is one per test module, with whatever streams the tests before left; ``clean_cluster`` is the same without
any. Import both into the test module that uses them, and let its tests share a loop: routes lead through proxies, so
that a node can be cut off, and proxies stand still where their loop does (``pytestmark = ON_ONE_LOOP``).
"""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from events.errors import LogUnavailable, Misconfigured
from events.ids import Epoch
from lab.nats_cluster import NatsCluster, nats_cluster
from service.log.jetstream import migrate_log
from tests.servers.nats import delete_all_streams

REPLICAS = 3
WAIT_S = 30.0
ON_ONE_LOOP = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[NatsCluster]:
    async with nats_cluster(tmp_path_factory.mktemp("cluster"), proxied=True) as made:
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def straight_cluster(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[NatsCluster]:
    """Without proxies, for tests on any loop. No node tells clients of the others: they stay behind their proxies."""
    async with nats_cluster(tmp_path_factory.mktemp("cluster"), advertise=False) as made:
        yield made


@pytest_asyncio.fixture(loop_scope="module")
async def clean_cluster(cluster: NatsCluster) -> NatsCluster:
    await cluster.ready()
    await delete_all_streams(cluster.url_of(0))
    return cluster


async def migrate_cluster(cluster: NatsCluster) -> Epoch:
    """Make the log on all three. A server that was cut off counts as away until it has told of itself again, and what
    is asked for while they choose a leader is not heard: as the Job does, again.
    """
    async with asyncio.timeout(WAIT_S):
        while True:
            with contextlib.suppress(Misconfigured, LogUnavailable):
                return await migrate_log(cluster.url, random=os.urandom(3), replicas=REPLICAS)
            await asyncio.sleep(0.1)
