"""A gateway's NATS connection is cut five times under traffic: every client still sees every message once, in order.

The gateway under test reaches NATS through a proxy that resets its connection; another one, that is not cut, sends.
What the cut gateway itself is asked to send meanwhile may be refused, but nothing that it acknowledged may be missing.
"""

import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import pytest_asyncio

from service.up.child import spawn
from tests.servers.processes import until
from tests.servers.proxy import Proxy, proxy_to
from tests.servers.raw_signalr import RawClient
from tests.servers.up import Up

pytestmark = pytest.mark.asyncio(loop_scope="module")

CUTS = 5
RECEIVERS = 8
BETWEEN_CUTS = 50
GROUP = b'["lobby"]'


@pytest_asyncio.fixture(loop_scope="module")
async def cut_gateway(served: Up, tmp_path: Path) -> AsyncIterator[tuple[str, Proxy]]:
    """A third gateway on the same installation, whose NATS connection goes through a proxy."""
    nats = served.entry("nats").url or ""
    target = urlsplit(nats)
    async with proxy_to(target.hostname or "", target.port or 0) as proxy:
        environment = {
            **served.environment,
            "HUBLOG_NATS_URL": proxy.url(nats),
            "HUBLOG_POSTGRES_DSN": served.entry("postgres").url or "",
            "HUBLOG_SECRETS": (served.data_dir / "secrets").read_text().strip(),
            "HUBLOG_AUTH": "none",
            "HUBLOG_NODE": "cut",
        }
        child = spawn(
            "cut gateway",
            [sys.executable, "-P", "-m", "service", "gateway", "--index", "2"],
            log_file=tmp_path / "gateway.log",
            death_signal=signal.SIGTERM,
            env={**os.environ, **environment},
        )
        url = f"http://127.0.0.1:{served.base + 2}"
        try:
            await until(lambda: _answers(served.base + 2), what="the cut gateway", timeout_s=20)
            yield url, proxy
        finally:
            await child.stop(((signal.SIGTERM, 20.0),))


async def test_every_client_sees_every_message_once_in_order(
    gateways: tuple[str, str], cut_gateway: tuple[str, Proxy], hub: str
) -> None:
    cut_url, proxy = cut_gateway
    async with AsyncExitStack() as stack:

        async def client(url: str, user: str) -> RawClient:
            return await stack.enter_async_context(RawClient(url, hub, f"?user={user}"))

        receivers = [await client(cut_url, f"r{number % 2}") for number in range(RECEIVERS)]
        for receiver in receivers:
            assert "error" not in await receiver.call("hub.join", GROUP)
        sender = await client(gateways[0], "sender")
        cut_sender = await client(cut_url, "cut-sender")
        stop = asyncio.Event()
        sending = asyncio.ensure_future(_send(sender, stop))
        cut_sending = asyncio.ensure_future(_send_acknowledged(cut_sender, stop))
        for number in range(CUTS):
            before = _heard(receivers[0])
            proxy.cut() if number % 2 else proxy.reset()
            await asyncio.wait([sending], timeout=0.3)
            proxy.heal()
            # It is connected and hears again before the next cut, or five cuts would be one long one: what is heard may
            # be from before the cut.
            await until(
                lambda number=number, before=before: (
                    proxy.accepted > number + 1 and _heard(receivers[0]) > before + BETWEEN_CUTS
                ),
                what=f"traffic after cut {number}",
                timeout_s=20,
            )
        stop.set()
        sent = await sending
        acknowledged = await cut_sending
        assert sent > CUTS * BETWEEN_CUTS
        assert acknowledged
        for receiver in receivers:
            await receiver.record(containing=b'"arguments":["end"]')
            assert not receiver.ended
            assert _numbers(receiver, "n") == list(range(1, sent + 1))
            own = _numbers(receiver, "own")
            assert own == sorted(set(own))
            assert set(acknowledged) <= set(own)
        assert proxy.accepted > CUTS


async def _send(client: RawClient, stop: asyncio.Event) -> int:
    """Calls in three ways, one after another, all for the same receivers; then the end. Gives how many."""
    selectors = ['{"to":"others"}', '{"to":"group","group":"lobby"}', '{"to":"groups","groups":["lobby","none"]}']
    sent = 0
    while not stop.is_set():
        sent += 1
        asked = f'[{selectors[sent % 3]},"n",[{sent}]]'
        answer = await client.call("hub.invoke", asked.encode())
        assert answer["result"]["outcome"] == "accepted"
    await client.call("hub.invoke", b'[{"to":"others"},"n",["end"]]')
    return sent


async def _send_acknowledged(client: RawClient, stop: asyncio.Event) -> list[int]:
    """Numbers that the cut gateway acknowledged; what it refused says that it may be tried again."""
    acknowledged = []
    number = 0
    while not stop.is_set():
        number += 1
        answer = await client.call("hub.invoke", f'[{{"to":"others"}},"own",[{number}]]'.encode())
        if "error" in answer:
            assert answer["error"].split(": ")[0] in {"log_unavailable", "log_overloaded", "outcome_unknown"}, answer
            await asyncio.wait([asyncio.ensure_future(stop.wait())], timeout=0.05)
        else:
            acknowledged.append(number)
    return acknowledged


def _numbers(client: RawClient, target: str) -> list[int]:
    marker = f'{{"type":1,"target":"{target}",'.encode()
    found = [json.loads(record)["arguments"][0] for record in client.records if record.startswith(marker)]
    return [number for number in found if isinstance(number, int)]


def _heard(client: RawClient) -> int:
    """How many of the calls that go on all the time."""
    return sum(record.startswith(b'{"type":1,"target":"n",') for record in client.records)


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
