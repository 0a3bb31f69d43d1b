"""nats-server can write no more, and says so to nobody: what each gateway tells, and which alert names it.

The limit on the size of its files stands in for a full disk: what it writes fails alike, and what it reads does not.
"""

import asyncio

import pytest

from service.up.nats_server import NatsServer
from tests.servers.health import labelled, readiness, wait_ready, wait_unready
from tests.servers.nats import may_write
from tests.servers.processes import POLL_S
from tests.servers.promql import alerts, selectors
from tests.servers.up import Up

pytestmark = pytest.mark.asyncio(loop_scope="module")

RED_WITHIN_S = 20.0
(ALERT,) = (rule for rule in alerts() if rule["alert"] == "HublogLogSilent")


@pytest.fixture(scope="module")
def servers(nats: NatsServer) -> dict[str, str]:
    return {"HUBLOG_NATS_URL": nats.url}


async def fires(admin: str | None) -> bool:
    """Whether what the alert multiplies is 1, of one gateway: it asks for the least of all."""
    read = [await labelled(admin, name, **labels) for name, labels in selectors(ALERT["expr"])]
    assert len(read) == 2
    return read == [1.0, 1.0]


async def test_a_full_disk_is_named_and_is_over_after_a_restart(served: Up, nats: NatsServer) -> None:
    admins = [served.entry("gateway", index).admin_url for index in range(2)]
    assert not any([await fires(admin) for admin in admins])
    may_write(nats, 0)
    for wrong in await asyncio.gather(*(wait_unready(admin, timeout_s=RED_WITHIN_S) for admin in admins)):
        assert list(wrong) == ["lease"]
        assert "the disk of NATS may be full" in wrong["lease"]
    assert all([await fires(admin) for admin in admins])
    ready, _ = await readiness(served.entry("api").admin_url)
    assert ready, "reading goes on"

    may_write(nats, None)
    await nats.restart()
    await asyncio.gather(*(wait_ready(admin) for admin in admins))
    assert not any([await fires(admin) for admin in admins])


async def test_gateways_without_nats_are_no_full_disk(served: Up, nats: NatsServer) -> None:
    admin = served.entry("gateway", 0).admin_url
    await nats.kill()
    async with asyncio.timeout(RED_WITHIN_S):
        while True:
            _, checks = await readiness(admin)
            if checks["lease"] != "ok":
                break
            await asyncio.sleep(POLL_S)
    assert checks["lease"] == "suspended: not renewed"
    assert not await fires(admin)
    await nats.restart()
    await wait_ready(admin)
