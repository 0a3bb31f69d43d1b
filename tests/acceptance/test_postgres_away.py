"""Postgres is stopped, and killed: delivery does not notice, the API says so, and the read models catch up.

Meanwhile nobody is swept, since nobody knows what the log says about whom; it is owed, and done once afterwards. While
only the projector's way to it hangs, answers go on and say how old they are.
"""

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.servers.health import readiness, wait_ready, wait_unready
from tests.servers.processes import gone, until
from tests.servers.questions import Api
from tests.servers.raw_signalr import RawClient
from tests.servers.traffic import Sender, by, heard, pause, told
from tests.servers.up import Up

pytestmark = pytest.mark.asyncio(loop_scope="module")

AWAY_S = 8.0
TTL_S = 3
EACH = 5  # clients of either kind on either gateway
YOUNG_MS, OLD_MS = 2_000, 4_000
MORE = 40  # messages that come while it is away
OPTIONS = ()  # up restarts what ends
SETTINGS = {"HUBLOG_SESSION_TTL": str(TTL_S)}
CALL = b'{"selector":{"to":"all"},"target":"asked","arguments":[]}'


class Crowd:
    """Clients of both kinds on both gateways, and a sender on each."""

    def __init__(self, clients: list[RawClient], senders: list[Sender]) -> None:
        self.clients = clients
        self.senders = senders

    async def hear_more(self) -> None:
        counts = [len(heard(one)) for one in self.clients]
        await until(
            lambda: all(len(heard(one)) >= count + MORE for one, count in zip(self.clients, counts, strict=True)),
            what="traffic everywhere",
        )

    async def heard_all(self, api: Api) -> None:
        """What the read model has, once it is as far as the log, is what everybody heard; nothing was refused."""
        await asyncio.gather(*(sender.finish() for sender in self.senders))
        async with asyncio.timeout(20):
            while (await api.raw("GET", "events", min_position=self.senders[0].reached(), limit=1))[0] != 200:
                await pause(asyncio.Event(), 0.1)
        sent = await told(api, *self.senders)
        for one in self.clients:
            await one.record(containing=f'"{sent[-1]}"'.encode())
            assert not one.ended
            assert heard(one) == sent, "lost, twice, or out of order"
        for name, sender in zip("ab", self.senders, strict=True):
            assert not sender.refused()
            assert by(name, sent) == list(range(1, sender.sent + 1))


@asynccontextmanager
async def crowd(gateways: tuple[str, str], hub: str) -> AsyncIterator[Crowd]:
    async with AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(RawClient(gateway, hub, query))
            for gateway in gateways
            for query in ("", "?resumable=1")
            for _ in range(EACH)
        ]
        for one in clients:
            await one.call("hub.session", b"[]")
        senders = [
            Sender(await stack.enter_async_context(RawClient(gateway, hub)), name)
            for gateway, name in zip(gateways, "ab", strict=True)
        ]
        yield Crowd(clients, senders)


def backends(postmaster: int) -> list[int]:
    """Its children: everything that works on the data."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and not gone(int(folder.name)):
            stat = (folder / "stat").read_text(encoding="utf-8", errors="replace")
            if int(stat.rpartition(")")[2].split()[1]) == postmaster:
                found.append(int(folder.name))
    return found


@asynccontextmanager
async def stopped(pids: list[int]) -> AsyncIterator[None]:
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


async def test_stopped_for_a_while(served: Up, gateways: tuple[str, str], api: Api, hub: str) -> None:
    postmaster = served.entry("postgres").pid
    assert postmaster is not None
    projector = served.entry("projector").admin_url
    async with crowd(gateways, hub) as everybody:
        await everybody.hear_more()
        async with RawClient(gateways[0], hub, "?resumable=1") as leaving:
            session = (await leaving.call("hub.session", b"[]"))["result"]["sessionId"]
        await api.until("sessions", lambda found: [one["sessionId"] for one in found] == [session], state="detached")

        back = asyncio.Event()
        async with stopped([postmaster, *backends(postmaster)]):
            asyncio.get_running_loop().call_later(AWAY_S, back.set)
            await everybody.hear_more()
            await _commands_work(gateways[0], hub)
            await _the_api_says_so(api)
            assert "postgres" in await wait_unready(projector, timeout_s=AWAY_S)
            for index in range(2):
                assert (await readiness(served.entry("gateway", index).admin_url))[0], "gateways need no Postgres"
            await everybody.hear_more()
            await back.wait()
            returned_at = datetime.now(UTC)
        await wait_ready(projector)
        await wait_ready(served.entry("api").admin_url)
        await everybody.heard_all(api)
        (expired,) = [event for event in await api.closed_history(session) if event["type"] == "session.closed.v1"]
        assert expired["data"]["reason"] == "expired"
        assert datetime.fromisoformat(expired["at"]) > returned_at, "its time was up long before, but who would know"
        await _aged(api, lambda age_ms: age_ms < YOUNG_MS)


async def test_killed_and_started_again(served: Up, gateways: tuple[str, str], api: Api, hub: str) -> None:
    postmaster = served.entry("postgres").pid
    assert postmaster is not None
    async with crowd(gateways, hub) as everybody:
        await everybody.hear_more()
        os.kill(postmaster, signal.SIGKILL)
        await everybody.hear_more()
        await _commands_work(gateways[1], hub)
        await until(
            lambda: any(one.role == "postgres" and one.pid not in {None, postmaster} for one in served.entries),
            what="Postgres, started again",
        )
        await wait_ready(served.entry("projector").admin_url)
        await wait_ready(served.entry("api").admin_url)
        await everybody.hear_more()
        await everybody.heard_all(api)
        active = await api.items("sessions", state="active")
        assert len(active) == 4 * EACH + 2
        assert await api.items("events", type="session.detached") == []


async def test_answers_say_how_old_they_are(served: Up, gateways: tuple[str, str], api: Api, hub: str) -> None:
    dsn = served.entry("postgres").url or ""
    async with await psycopg.AsyncConnection.connect(dsn) as connection:
        rows = await connection.execute(
            "SELECT pid FROM pg_stat_activity WHERE application_name LIKE 'hublog projector%'"
        )
        writing = [int(pid) for (pid,) in await rows.fetchall()]
    assert writing
    async with RawClient(gateways[0], hub) as client:
        first = (await client.call("hub.invoke", b'[{"to":"all"},"tell",["x-1",""]]'))["result"]["position"]
        before = await api.get("sessions", min_position=first)
        async with stopped(writing):
            later = (await client.call("hub.join", b'["lobby"]'))["result"]["position"]
            aged = await _aged(api, lambda age_ms: age_ms > OLD_MS)
            assert aged["position"] == before["position"]
            assert [one["groups"] for one in aged["items"]] == [[]]
            assert await api.refused("GET", "sessions", min_position=later) == (409, "position_not_reached")
        (found,) = await api.until("sessions", lambda sessions: sessions[0]["groups"] == ["lobby"])
        assert found["state"] == "active"
        await _aged(api, lambda age_ms: age_ms < YOUNG_MS)


async def _commands_work(gateway: str, hub: str) -> None:
    """Whoever comes now is served as ever."""
    async with RawClient(gateway, hub) as client:
        assert (await client.call("hub.join", b'["lobby"]'))["result"]["groups"] == ["lobby"]
        asked = b'[{"to":"group","group":"lobby"},"mine",[]]'
        assert (await client.call("hub.invoke", asked))["result"]["outcome"] == "accepted"
        await client.record(containing=b'"target":"mine"')
        assert (await client.call("hub.leaveAll", b"[]"))["result"]["groups"] == []


async def _the_api_says_so(api: Api) -> None:
    """Questions are refused, and said to be worth asking again; commands need the log only."""
    for path in ("sessions", "groups", "invocations", "events", "/v1/nodes", "/v1/projections"):
        status, body = await api.raw("GET", path)
        document = json.loads(body)
        assert (status, document["code"]) == (503, "read_model_unavailable"), path
        assert document["hint"]
    status, body = await api.raw("POST", "invocations", CALL)
    assert status == 200, body
    assert json.loads(body)["outcome"] == "accepted"


async def _aged(api: Api, condition: Callable[[int], bool]) -> Any:
    """An answer of the age that is wanted."""
    async with asyncio.timeout(20):
        while not condition((answer := await api.get("sessions"))["ageMs"]):
            await pause(asyncio.Event(), 0.2)
        return answer
