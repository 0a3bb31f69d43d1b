"""A gateway is stopped (SIGSTOP) for longer than its lease, and then goes on as if nothing had happened.

Meanwhile its clients resume on the other gateway. In its sockets lie calls that it has not read, and messages that NATS
sent it. When it goes on, none of those calls may get into the log and none of those messages may reach a client: others
have been told that this node is gone, and speak for its sessions.
"""

import asyncio
import json
import os
import signal
from contextlib import AsyncExitStack

import pytest

from tests.servers.processes import until
from tests.servers.questions import Api
from tests.servers.raw_signalr import RawClient
from tests.servers.resuming import calls, connect_all, positions, resume_all, said, send_until
from tests.servers.up import Up

pytestmark = pytest.mark.asyncio(loop_scope="module")

CLIENTS = 500
STALE = b'{"type":1,"invocationId":"9","target":"hub.invoke","arguments":[{"to":"all"},"stale",[]]}\x1e'


async def test_nothing_of_a_paused_gateway_gets_in_or_out(
    served: Up, gateways: tuple[str, str], api: Api, hub: str
) -> None:
    paused = served.entry("gateway", 0).pid
    async with AsyncExitStack() as stack:
        old = await connect_all(stack, gateways[0], hub, CLIENTS)
        sessions = [(await client.call("hub.session", b"[]"))["result"] for client in old]
        sender = await stack.enter_async_context(RawClient(gateways[1], hub))
        stop = asyncio.Event()
        sending = asyncio.ensure_future(send_until(sender, stop))
        await until(lambda: all(said(client) for client in old), what="traffic everywhere", timeout_s=20)
        os.kill(paused, signal.SIGSTOP)
        try:
            for client in old:
                client.send(STALE)
            new = await resume_all(stack, gateways[1], hub, old, sessions)
            await _called_lost(api, stop)
            before = [len(client.records) for client in old]
        finally:
            os.kill(paused, signal.SIGCONT)
        await asyncio.gather(*(client.end() for client in old))
        stop.set()
        last = await sending
        for client in new:
            await client.record(containing=last.encode())
        for client, count in zip(old, before, strict=True):
            after = [json.loads(record) for record in client.records[count:]]
            assert [one["type"] for one in after if one["type"] != 6][-1:] == [7], after
            assert all(one["type"] in {3, 6, 7} for one in after), "a message reached a client of the paused gateway"
            assert after[-1]["allowReconnect"] is True
        sent = await positions(api, last)
        for client, resumed in zip(old, new, strict=True):
            received = [position for one in (client, resumed) for position in said(one)]
            assert received == sent, "lost, twice, or out of order"
        assert not [one for one in await calls(api, last) if one["data"]["target"] == "stale"]
        async with RawClient(gateways[0], hub) as back:  # it has begun a new life
            assert (await back.call("hub.session", b"[]"))["result"]["sessionId"]


async def _called_lost(api: Api, stop: asyncio.Event) -> None:
    async with asyncio.timeout(40):
        while not any(node["state"] == "lost" for node in (await api.get("/v1/nodes"))["items"]):
            await asyncio.wait([asyncio.ensure_future(stop.wait())], timeout=0.2)
