"""``kill -9`` of a gateway under traffic: all of its resumable sessions go on on the other one, and nobody can tell.

None lost, none twice, none out of order: what each client was sent, before and after, is what the log holds.
"""

import asyncio
import os
import signal
import time
from contextlib import AsyncExitStack

import pytest

from tests.servers.processes import until
from tests.servers.questions import Api
from tests.servers.raw_signalr import RawClient
from tests.servers.resuming import connect_all, positions, resume_all, said, send_until
from tests.servers.up import Up

pytestmark = pytest.mark.asyncio(loop_scope="module")

CLIENTS = 1_000
RESUMED_WITHIN_S = 10.0


async def test_every_session_of_a_killed_gateway_goes_on_elsewhere(
    served: Up, gateways: tuple[str, str], api: Api, hub: str
) -> None:
    async with AsyncExitStack() as stack:
        old = await connect_all(stack, gateways[0], hub, CLIENTS)
        sessions = [(await client.call("hub.session", b"[]"))["result"] for client in old]
        sender = await stack.enter_async_context(RawClient(gateways[1], hub))
        stop = asyncio.Event()
        sending = asyncio.ensure_future(send_until(sender, stop))
        await until(lambda: all(said(client) for client in old), what="traffic everywhere", timeout_s=20)
        os.kill(served.entry("gateway", 0).pid, signal.SIGKILL)
        await asyncio.gather(*(client.end() for client in old))
        began_s = time.monotonic()
        new = await resume_all(stack, gateways[1], hub, old, sessions)
        answers = [(await client.call("hub.session", b"[]"))["result"] for client in new]
        took_s = time.monotonic() - began_s
        stop.set()
        last = await sending
        for client in new:
            await client.record(containing=last.encode())
        assert took_s < RESUMED_WITHIN_S
        assert all(answer["resumed"] and answer["resync"] is None for answer in answers)
        assert [answer["sessionId"] for answer in answers] == [answer["sessionId"] for answer in sessions]
        sent = await positions(api, last)
        assert sent
        for before, after in zip(old, new, strict=True):
            assert said(before) + said(after) == sent, "lost, twice, or out of order"
