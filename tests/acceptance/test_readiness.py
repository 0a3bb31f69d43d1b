"""``/readyz`` of each process, while NATS and Postgres are killed, or stopped with their connections left open.

It turns red within 5 s, says why, and turns green again by itself. While NATS is silent, commands are refused at once
as worth trying again; what was sent before is neither lost nor stored twice, and nobody is told that it failed.
"""

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

import migrations
from service.up.nats_server import NatsServer
from service.up.postgres import PostgresServer
from tests.servers.health import number, readiness, wait_ready
from tests.servers.postgres import start_postgres
from tests.servers.processes import gone
from tests.servers.questions import Api
from tests.servers.raw_signalr import RawClient
from tests.servers.traffic import code_of
from tests.servers.up import Up

pytestmark = pytest.mark.asyncio(loop_scope="module")

RED_WITHIN_S = 5.0
FAILS_WITHIN_S = 0.5
POLL_S = 0.05
GATEWAYS = 1
SETTINGS = {"HUBLOG_CANARY_EVERY": "1"}
ROLES = ("gateway", "projector", "api")
CALL = b'{"selector":{"to":"all"},"target":"asked","arguments":[]}'


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def postgres(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[PostgresServer]:
    server = await start_postgres(tmp_path_factory.mktemp("outside-postgres"))
    yield server
    await server.stop()


@pytest.fixture(scope="module")
def servers(nats: NatsServer, postgres: PostgresServer) -> dict[str, str]:
    return {"HUBLOG_NATS_URL": nats.url, "HUBLOG_POSTGRES_DSN": postgres.dsn}


@asynccontextmanager
async def silent(*roots: int) -> AsyncIterator[None]:
    """These processes and their children, stopped: their sockets stay open, and nobody reads them."""
    for root in roots:
        os.kill(root, signal.SIGSTOP)
    pids = [*roots, *(pid for root in roots for pid in _children(root))]
    _send(pids, signal.SIGSTOP)
    try:
        yield
    finally:
        _send(pids, signal.SIGCONT)


def _send(pids: list[int], sig: signal.Signals) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):  # some of Postgres' children come and go
            os.kill(pid, sig)


def _children(parent: int) -> list[int]:
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and not gone(int(folder.name)):
            stat = (folder / "stat").read_text(encoding="utf-8", errors="replace")
            if int(stat.rpartition(")")[2].split()[1]) == parent:
                found.append(int(folder.name))
    return found


async def _reds(served: Up, check: str, roles: tuple[str, ...]) -> dict[str, str]:
    """Why each says that it is not ready, on account of this check and within the time."""

    async def red(role: str) -> str:
        async with asyncio.timeout(RED_WITHIN_S):
            while True:
                ready, checks = await readiness(served.entry(role).admin_url)
                if checks.get(check, "ok") != "ok":
                    assert not ready
                    return checks[check]
                await asyncio.sleep(POLL_S)

    return dict(zip(roles, await asyncio.gather(*(red(role) for role in roles)), strict=True))


async def _all_green(served: Up) -> None:
    await asyncio.gather(*(wait_ready(served.entry(role).admin_url) for role in ROLES))


async def test_each_is_ready_and_says_what_it_looked_at(served: Up) -> None:
    looked_at, told = {}, {}
    for role in ROLES:
        status, _ = await _get(served, role, "/livez")
        assert status == 200
        told[role] = json.loads((await _get(served, role, "/readyz"))[1])
        assert told[role]["pid"] == served.entry(role).pid
        ready, checks = await readiness(served.entry(role).admin_url)
        assert ready, checks
        assert set(checks.values()) == {"ok"}
        looked_at[role] = set(checks)
    assert looked_at["gateway"] == {"nats", "lease", "delivery", "draining"}
    assert looked_at["api"] == {"nats", "postgres", "schema", "staleness", "draining"}
    assert looked_at["projector"] >= {"nats", "postgres", "schema", "partition 0", "leases", "sweeper", "draining"}

    assert told["gateway"]["circuits"] == {"nats": "closed"}
    for role in ("api", "projector"):
        assert told[role]["circuits"] == {"nats": "closed", "postgres": "closed"}
        assert told[role]["schema"] == migrations.head()
    await _reflected(served)


async def _get(served: Up, role: str, path: str) -> tuple[int, str]:
    async with aiohttp.ClientSession() as session, session.get(f"{served.entry(role).admin_url}{path}") as answer:
        return answer.status, await answer.text()


async def _reflected(served: Up) -> None:
    """The api tells how old its read models are, once there are any."""
    async with asyncio.timeout(20):
        while True:
            found = json.loads((await _get(served, "api", "/readyz"))[1])["readModelsAgeS"]
            if found is not None and found < 5:
                return
            await asyncio.sleep(POLL_S)


async def test_a_canary_goes_the_whole_way_and_leaves_no_trace(served: Up, api: Api, hub: str) -> None:
    admin = served.entry("gateway").admin_url
    async with asyncio.timeout(20):
        while True:
            found = json.loads((await _get(served, "gateway", "/readyz"))[1])["canary"]
            if found and "projectMs" in found[0]:
                break
            await asyncio.sleep(POLL_S)
    assert (found[0]["partition"], found[0]["problem"]) == (0, None)
    assert 0 < found[0]["appendMs"] <= found[0]["projectMs"]
    assert 0 < found[0]["deliverMs"] <= found[0]["projectMs"]
    assert await number(admin, "hublog_canaries_total") >= 1
    assert await number(admin, "hublog_canaries_failed_total") == 0
    assert await number(admin, "hublog_canary_leg_seconds") > 0
    async with RawClient(served.entry("gateway").url or "", hub) as client:
        position = (await client.call("hub.join", b'["lobby"]'))["result"]["position"]
        await api.get("sessions", min_position=position)
        assert [one["hub"] for one in await api.items("/v1/hubs")] == [hub]
        assert [one["type"] for one in await api.items("events")] == ["session.opened.v1", "session.joined.v1"]
        (projection,) = await api.items("/v1/projections")
        assert projection["parked"] == 0
        assert [one["node"] for one in await api.items("/v1/nodes")] == [(await _node(api))]


async def _node(api: Api) -> str:
    """Of the only session."""
    (session,) = await api.items("sessions")
    return str(session["node"])


async def test_nats_is_killed(served: Up, nats: NatsServer) -> None:
    await nats.kill()
    for role, why in (await _reds(served, "nats", ROLES)).items():
        assert why == "not connected to NATS (HUBLOG_NATS_URL)", role
    await nats.restart()
    await _all_green(served)


async def test_postgres_is_killed(served: Up, postgres: PostgresServer) -> None:
    await postgres.kill()
    for role, why in (await _reds(served, "postgres", ("projector", "api"))).items():
        assert "HUBLOG_POSTGRES_DSN" in why, role
    assert (await readiness(served.entry("gateway").admin_url))[0], "a gateway needs no Postgres"
    await postgres.restart()
    await _all_green(served)


async def test_postgres_is_silent(served: Up, postgres: PostgresServer, api: Api) -> None:
    async with silent(postgres.pid):
        for role, why in (await _reds(served, "postgres", ("projector", "api"))).items():
            assert why.startswith("Postgres (HUBLOG_POSTGRES_DSN): it has not answered for"), role
        for path in ("sessions", "/v1/nodes", "/v1/projections"):
            status, body = await _at_once(lambda path=path: api.raw("GET", path))
            assert (status, json.loads(body)["code"]) == (503, "read_model_unavailable")
        status, body = await api.raw("POST", "invocations", CALL)
        assert status == 200, "commands need the log only"
    await _all_green(served)
    assert await api.get("sessions")


async def test_nats_is_silent(served: Up, nats: NatsServer, api: Api, hub: str) -> None:
    gateway = served.entry("gateway")
    async with RawClient(gateway.url or "", hub) as client, RawClient(gateway.url or "", hub) as asking:
        await client.call("hub.join", b'["lobby"]')
        async with silent(nats.pid):
            before = asyncio.create_task(client.call("hub.invoke", b'[{"to":"others"},"before",[]]'))
            for role, why in (await _reds(served, "nats", ROLES)).items():
                assert why.startswith("connected to NATS (HUBLOG_NATS_URL), but it has not answered for"), role
            for target, arguments in (
                ("hub.invoke", b'[{"to":"others"},"during",[]]'),
                ("hub.join", b'["kitchen"]'),
                ("hub.leaveAll", b"[]"),
            ):
                answer = await _at_once(lambda call=(target, arguments): asking.call(*call))
                assert code_of(answer) in {"log_unavailable", "suspended"}, answer
            status, body = await _at_once(lambda: api.raw("POST", "invocations", CALL))
            assert (status, json.loads(body)["code"]) == (503, "log_unavailable")
            assert not before.done(), "nobody knows yet what became of it"
            assert await number(gateway.admin_url, "hublog_circuit_refused_total") >= 3
            assert await number(gateway.admin_url, "hublog_circuit_state") == 1
        await _all_green(served)
        assert (await before)["result"]["outcome"] == "accepted"
        await asking.call("hub.invoke", b'[{"to":"all"},"after",[]]')
        await asking.record(containing=b'"target":"after"')
        assert [json.loads(one).get("target") for one in asking.records if b'"target"' in one] == ["before", "after"]
        written = await api.until("invocations", lambda found: len(found) == 2)
        assert [one["target"] for one in written] == ["after", "before"]
    log = served.data_dir / "logs" / "gateway-0.log"
    events = [json.loads(line)["event"] for line in log.read_text().splitlines()]
    assert events.count("circuit.opened") <= 2, "one for each time that NATS was away"


async def _at_once(ask: Callable[[], Awaitable[Any]]) -> Any:
    async with asyncio.timeout(FAILS_WITHIN_S):
        return await ask()
