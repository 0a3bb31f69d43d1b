"""A resumable client that stops reading: cut off at its bound, without cost to the others, and resumed without loss.

What one client that does not read can hold, with ``HUBLOG_OUTBOX_BYTES_MAX`` at B (here 64 KiB):

* in the gateway's memory: B and the one frame that goes beyond it, and the object of the connection, some 25 KiB;
* in the kernel: the send buffer of the gateway's socket. Nobody sets SO_SNDBUF, so Linux grows it from 16 KiB to at
  most the last number of ``net.ipv4.tcp_wmem``, 4 MiB as a rule: on loopback 3.9 MB are taken before anything is kept
  back. SO_RCVBUF is the client's own (``tcp_rmem``); here it asks for 4 KiB, so that the bound is met early.

So sessions times (B + 25 KiB) bound the process, and times ``tcp_wmem`` the kernel. Both are free again with the cut:
it is a reset, or the kernel would keep its part until the client reads, for minutes at least.
"""

import asyncio
import itertools
import json
import socket
import statistics
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.servers.health import number
from tests.servers.processes import until
from tests.servers.questions import Api
from tests.servers.raw_signalr import RawClient
from tests.servers.traffic import Sender, heard, pause, told
from tests.servers.up import Up

pytestmark = pytest.mark.asyncio(loop_scope="module")

OUTBOX_BYTES = 65_536
SETTINGS = {"HUBLOG_OUTBOX_BYTES_MAX": str(OUTBOX_BYTES)}
TEXT = "x" * 4_000
LISTENERS = 10
SILENT = 20
ROUND_TRIPS = 300
TIMES_SLOWER = 2.0
SLACK_S = 0.010  # of the machine, not of the gateway: who waited for a silent client would wait for seconds
CONNECTION_BYTES = 25 * 1024
NOISE_BYTES = 4 * 1024 * 1024
"""What a process of Python moves by when it has worked."""
RECEIVE_BYTES = 4_096
LISTENING = "0A"


def narrow(client: RawClient) -> None:
    """Let the kernel keep little for this client."""
    connected: socket.socket = client.writer.get_extra_info("socket")
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BYTES)


def resident(pid: int) -> int:
    """Bytes."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmRSS"))


def unsent(gateway: str) -> list[int]:
    """Bytes that the kernel holds for each of its clients, whoever still owns the socket."""
    port = f":{urlsplit(gateway).port:04X}"
    rows = [line.split() for line in Path("/proc/net/tcp").read_text(encoding="ascii").splitlines()[1:]]
    return [int(row[4].split(":")[0], 16) for row in rows if row[1].endswith(port) and row[3] != LISTENING]


def most_unsent() -> int:
    return int(Path("/proc/sys/net/ipv4/tcp_wmem").read_text(encoding="ascii").split()[-1])


@asynccontextmanager
async def traffic(gateway: str, hub: str) -> AsyncIterator[tuple[Sender, list[RawClient]]]:
    """A sender and some who listen, on the gateway of the slow one."""
    async with AsyncExitStack() as stack:
        listeners = [await stack.enter_async_context(RawClient(gateway, hub)) for _ in range(LISTENERS)]
        sender = Sender(await stack.enter_async_context(RawClient(gateway, hub)), "a", text=TEXT, pause_s=0.004)
        yield sender, listeners


async def test_it_is_cut_off_at_its_bound_and_resumes_without_loss(
    served: Up, gateways: tuple[str, str], api: Api, hub: str
) -> None:
    admin = served.entry("gateway", 0).admin_url
    async with RawClient(gateways[0], hub, "?resumable=1") as slow, traffic(gateways[0], hub) as (sender, listeners):
        narrow(slow)
        about = (await slow.call("hub.session", b"[]"))["result"]
        await until(lambda: len(heard(slow)) > 20, what="traffic")
        slow.stop_reading()
        detached = await _detached(api, about["sessionId"])
        assert detached["data"]["reason"] == "slow_consumer"
        assert await number(admin, "hublog_slow_consumers_total") == 1
        assert not any(one.ended for one in listeners)
        slow.writer.transport.resume_reading()  # type: ignore[attr-defined]  # asyncio's, but StreamWriter hides it
        await slow.end()  # by a reset: what it had not read is gone, and will come again
        assert not [one for one in slow.records if b'"type":7' in one], "a Close would have waited behind the rest"
        before = heard(slow)
        assert len(before) * len(TEXT) > OUTBOX_BYTES // 2

        cursor = [json.loads(one)["arguments"][-1] for one in slow.records if b'"target":"tell"' in one][-1]
        query = f"?resumable=1&resume={about['resumeToken']}&cursor={cursor}"
        async with RawClient(gateways[1], hub, query) as again:
            answer = (await again.call("hub.session", b"[]"))["result"]
            assert (answer["sessionId"], answer["resumed"], answer["resync"]) == (about["sessionId"], True, None)
            await sender.finish()
            sent = await told(api, sender)
            await again.record(containing=f'"{sent[-1]}"'.encode())
            assert before + heard(again) == sent, "lost, twice, or out of order"
            for one in listeners:
                await one.record(containing=f'"{sent[-1]}"'.encode())
                assert heard(one) == sent
        history = await api.items(f"sessions/{about['sessionId']}/history")
        assert [one["type"].split(".")[1] for one in history][:3] == ["opened", "detached", "attached"]


async def test_it_costs_the_others_nothing(served: Up, gateways: tuple[str, str], api: Api, hub: str) -> None:
    async with traffic(gateways[0], hub) as (_, listeners):
        caller = listeners[0]
        without = await _round_trips(caller)
        async with AsyncExitStack() as stack:
            silent = await _silent(stack, gateways[0], hub)
            # From the moment they fall silent until the last of them has been cut off.
            cut = asyncio.gather(*(asyncio.ensure_future(_detached(api, session)) for session in silent))
            beside = await _round_trips(caller)
            while not cut.done():
                beside += await _round_trips(caller)
            await cut
            after = await _round_trips(caller)
    for measured in (beside, after):
        assert statistics.median(measured) < TIMES_SLOWER * statistics.median(without) + SLACK_S
        assert p99(measured) < TIMES_SLOWER * p99(without) + 10 * SLACK_S


async def test_clients_that_never_read_hold_no_more_than_their_bound(
    served: Up, gateways: tuple[str, str], api: Api, hub: str
) -> None:
    pid = served.entry("gateway", 1).pid
    assert pid is not None
    async with traffic(gateways[1], hub) as (_, listeners):
        await until(lambda: len(heard(listeners[0])) > 200, what="a gateway that has worked")
        before = peak = resident(pid)
        async with AsyncExitStack() as stack:
            silent = await _silent(stack, gateways[1], hub)
            waiting = [asyncio.ensure_future(_detached(api, session)) for session in silent]
            everybody = asyncio.gather(*waiting)
            queued = 0
            while not everybody.done():
                peak = max(peak, resident(pid))
                queued = max(queued, *unsent(gateways[1]))
                await asyncio.wait(waiting, timeout=0.02)
            await everybody
            bound = SILENT * (OUTBOX_BYTES + len(TEXT) + CONNECTION_BYTES)
            assert peak - before < bound + NOISE_BYTES, f"{(peak - before) // 1024} KiB for {SILENT} clients"
            assert OUTBOX_BYTES < queued <= most_unsent(), f"{queued} bytes in the kernel for one client"
            # They still do not read, and nobody holds anything for them any more.
            await until(lambda: max(unsent(gateways[1])) < OUTBOX_BYTES, what="an empty kernel", timeout_s=5)


async def _silent(stack: AsyncExitStack, gateway: str, hub: str) -> list[str]:
    """Clients that never read again once they know who they are; gives their sessions."""
    sessions = []
    for _ in range(SILENT):
        client = await stack.enter_async_context(RawClient(gateway, hub, "?resumable=1"))
        narrow(client)
        client.send(b'{"type":1,"invocationId":"who","target":"hub.session","arguments":[]}\x1e')
        answer = json.loads(await client.record(containing=b'"invocationId":"who"'))
        client.stop_reading()
        sessions.append(str(answer["result"]["sessionId"]))
    return sessions


async def _detached(api: Api, session: str) -> dict[str, Any]:
    own = f"ev.0.{api.hub}.s.{session}.log"
    async with asyncio.timeout(30):
        while not (found := await api.items("events", type="session.detached", subject=own)):
            await pause(asyncio.Event(), 0.1)
    (detached,) = found
    return dict(detached)


async def _round_trips(caller: RawClient) -> list[float]:
    """From a durable call to its delivery to the one who called, in seconds."""
    clock = asyncio.get_running_loop().time
    found = []
    for _ in range(ROUND_TRIPS):
        mark = b"trip-%d" % next(_trips)
        began = clock()
        caller.send(b'{"type":1,"target":"hub.invoke","arguments":[{"to":"caller"},"trip",["%s"]]}\x1e' % mark)
        await caller.record(containing=mark)
        found.append(clock() - began)
        caller.records.clear()
    return found


_trips = itertools.count(1)


def p99(values: list[float]) -> float:
    return statistics.quantiles(values, n=100)[-1]
