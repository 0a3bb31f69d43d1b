"""What becomes of sessions whose gateway is killed, and that nobody is taken for lost who is not."""

import asyncio
import os
import signal
from collections.abc import Callable
from contextlib import AsyncExitStack
from datetime import datetime, timedelta
from typing import Any

import pytest

from tests.servers.questions import Api
from tests.servers.raw_signalr import RawClient
from tests.servers.up import Up

pytestmark = pytest.mark.asyncio(loop_scope="module")

SESSIONS = 40
STOPPED_S = 12.0  # longer than a lease may be silent
PATIENCE_S = 40.0
POLL_S = 0.2

Nodes = dict[str, dict[str, Any]]


async def nodes(api: Api, condition: Callable[[Nodes], bool]) -> Nodes:
    """Nodes by address, once they are as wanted. Renewals are not in the log: there is no position to wait for."""
    async with asyncio.timeout(PATIENCE_S):
        while not condition(found := {node["url"]: node for node in await api.items("/v1/nodes")}):  # noqa: ASYNC110
            await asyncio.sleep(POLL_S)
        return found


def renewed_for(seconds: float, since: Nodes) -> Callable[[Nodes], bool]:
    """Whether every node has gone on renewing for so long."""

    def condition(found: Nodes) -> bool:
        return all(seen(found[url]) - seen(node) > timedelta(seconds=seconds) for url, node in since.items())

    return condition


def seen(node: dict[str, Any]) -> datetime:
    return datetime.fromisoformat(node["lastSeenAt"])


async def test_a_projector_that_was_stopped_takes_nobody_for_lost(
    served: Up, gateways: tuple[str, str], hub: str, api: Api
) -> None:
    pid = served.entry("projector").pid or 0
    async with RawClient(gateways[0], hub) as client:
        session = (await client.call("hub.session", b"[]"))["result"]["sessionId"]
        before = await nodes(api, lambda found: [node["lastSeenAt"] is None for node in found.values()] == [False] * 2)
        os.kill(pid, signal.SIGSTOP)
        try:
            await nodes(api, renewed_for(STOPPED_S, before))
        finally:
            os.kill(pid, signal.SIGCONT)
        # A wrong judgement would be the first thing it does; two more renewals later it has looked several times.
        after = await nodes(api, renewed_for(STOPPED_S + 4, before))
        assert {node["state"] for node in after.values()} == {"started"}
        assert await api.items("events", type="session.closed") == []
        assert (await api.get(f"sessions/{session}"))["state"] == "active"


async def test_sessions_of_a_killed_gateway_are_ended_within_seconds(
    served: Up, gateways: tuple[str, str], hub: str, api: Api
) -> None:
    async with AsyncExitStack() as stack:

        async def connect(gateway: str, query: str = "") -> str:
            client = await stack.enter_async_context(RawClient(gateway, hub, query))
            if "resumable" not in query:
                await client.call("hub.join", b'["lobby"]')
            return str((await client.call("hub.session", b"[]"))["result"]["sessionId"])

        staying = await connect(gateways[0])
        plain = [await connect(gateways[1]) for _ in range(SESSIONS)]
        resumable = await connect(gateways[1], "?resumable=1")
        await api.until("sessions", lambda sessions: len(sessions) == SESSIONS + 2)

        os.kill(served.entry("gateway", 1).pid or 0, signal.SIGKILL)
        # ``until`` gives up after 20 s; a lease is silent for 10 s before anybody says so.
        listed = await api.until(
            "sessions", lambda sessions: [s["sessionId"] for s in sessions if s["state"] == "active"] == [staying]
        )
        states = {one["sessionId"]: one["state"] for one in listed}
        assert {states[session] for session in plain} == {"closed"}
        assert states[resumable] == "detached"
        assert [m["sessionId"] for m in await api.items("groups/lobby/members")] == [staying]
        assert (await api.items("groups"))[0] == {"group": "lobby", "size": 1, "attached": 1}
        closed = await api.items(f"sessions/{plain[0]}/history")
        assert (closed[-1]["type"], closed[-1]["data"]["reason"]) == ("session.closed.v1", "node_lost")
        detached = (await api.items(f"sessions/{resumable}/history"))[-1]
        assert (detached["type"], detached["data"]["reason"]) == ("session.detached.v1", "node_lost")
        found = await nodes(api, lambda _: True)
        assert [found[url]["state"] for url in gateways] == ["started", "lost"]
