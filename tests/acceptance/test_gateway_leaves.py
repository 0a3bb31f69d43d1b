"""A gateway is told to stop, as in a rolling deploy: its clients are sent elsewhere with a Close that lets them come
back, and they do, on their own, when ``hublog up`` has started it again. The example chat goes through it as well.
"""

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.servers.processes import PATIENCE_S, until
from tests.servers.questions import Api
from tests.servers.raw_signalr import RawClient
from tests.servers.stock import StockClients, fence
from tests.servers.up import Up

pytestmark = pytest.mark.asyncio(loop_scope="module")

OPTIONS = ()  # up restarts what ends
SETTINGS = {"HUBLOG_DRAIN": "2"}
RESTART_S = 60.0  # a gateway that stops, starts and is found by back-off, on a busy machine
CHAT = Path(__file__).parents[2] / "examples" / "chat" / "chat.mjs"


async def test_clients_of_a_gateway_that_stops_come_back_on_their_own(
    served: Up, clients: StockClients, gateways: tuple[str, str], hub: str, api: Api
) -> None:
    leaving = served.entry("gateway", 1)
    ann = await clients.start("ann", gateways[0], hub)
    bob = await clients.start("bob", gateways[1], hub, retry_ms=(0, *[250] * 200))
    await bob.invoke("hub.join", "red")
    await fence(ann, ann, bob)
    (before,) = [node for node in await api.items("/v1/nodes") if node["url"] == gateways[1]]
    async with RawClient(gateways[1], hub) as raw:
        session = (await raw.call("hub.session", b"[]"))["result"]["sessionId"]

        os.kill(leaving.pid or 0, signal.SIGTERM)
        close = json.loads(await raw.record(containing=b'"type":7'))
        assert close["error"].startswith("shutdown: ")
        assert close["allowReconnect"] is True
        await raw.end()
    await bob.meets("reconnecting")
    await bob.meets("reconnected", timeout_s=RESTART_S)
    assert [event for event, _ in bob.events] == ["reconnecting", "reconnected"]
    assert ann.events == [], "the other gateway's clients do not feel it"

    # Another connection, and until sessions can be resumed another session, in no group.
    about = await bob.invoke("hub.session")
    assert about["sessionId"] != bob.session
    assert about["groups"] == []
    await ann.call({"to": "all"}, "welcome back")
    await bob.hears("say", "welcome back")

    for gone in (session, bob.session):
        assert (await api.closed_history(gone))[-1]["data"]["reason"] == "shutdown"
    (after,) = [node for node in await api.items("/v1/nodes") if node["url"] == gateways[1]]
    assert (after["node"], after["state"]) == (before["node"], "started")
    assert after["incarnation"] != before["incarnation"]
    assert served.entry("gateway", 1).pid not in {leaving.pid, None}
    assert served.entry("gateway", 1).url == gateways[1]


class Chat:
    """The example, with its input and output as pipes."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._reading = asyncio.ensure_future(self._read())
        self.lines: list[str] = []

    def types(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n".encode())

    async def shows(self, said: str | Callable[[str], bool], *, timeout_s: float = PATIENCE_S) -> None:
        """Wait for a line: exactly this one, or one as described."""
        wanted = said.__eq__ if isinstance(said, str) else said
        try:
            await until(lambda: any(wanted(line) for line in self.lines), timeout_s=timeout_s)
        except AssertionError as exc:
            raise AssertionError(f"never shown: {said}; there is {self.lines}") from exc

    async def leaves(self) -> int:
        """The end of its input; gives its exit status."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        await self._reading
        return await self._process.wait()

    async def _read(self) -> None:
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            self.lines.append(line.decode().rstrip("\n"))


@asynccontextmanager
async def chatting(url: str, *arguments: str) -> AsyncIterator[Chat]:
    process = await asyncio.create_subprocess_exec(
        "node", CHAT, "--url", url, *arguments, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    chat = Chat(process)
    try:
        yield chat
    finally:
        if process.returncode is None:
            process.kill()
            await chat.leaves()


async def test_the_example_chats_through_two_gateways_and_a_restart(
    served: Up, gateways: tuple[str, str], hub: str, api: Api
) -> None:
    api_url = served.entry("api").url or ""
    urls = [f"{gateway}/hubs/{hub}" for gateway in gateways]
    async with (
        chatting(urls[0], "--user", "bob", "--group", "lobby", "--api", api_url) as bob,
        chatting(urls[1], "--user", "ann", "--group", "side", "--skip-negotiation") as ann,
    ):
        await bob.shows("* you are in lobby")
        ann.types("/join lobby")
        await bob.shows("[lobby] ann joined")
        ann.types("hello, is anybody here?")
        await bob.shows("[lobby] ann: hello, is anybody here?")
        bob.types("/msg ann yes, \u001b[31mme")
        await ann.shows("bob tells you: yes, \ufffd[31mme")
        bob.types("/who")
        await bob.shows(lambda line: line in {"* in lobby: ann, bob", "* in lobby: bob, ann"})
        ann.types("/groups")
        await ann.shows("* lobby, side")

        os.kill(served.entry("gateway", 1).pid or 0, signal.SIGTERM)
        await ann.shows(lambda line: line.startswith("* connection lost (") and "shutdown: " in line)
        await ann.shows(
            lambda line: line.startswith("* resumed session ") and line.endswith(", in side, lobby"),
            timeout_s=RESTART_S,
        )
        bob.types("are you still there?")
        await ann.shows("[lobby] bob: are you still there?")
        ann.types("/leave lobby")
        await bob.shows("[lobby] ann left")
        await ann.shows("* you left lobby; you talk in side")
        assert await ann.leaves() == 0
        bob.types("/quit")
        assert await bob.leaves() == 0
    await api.until("sessions", lambda sessions: {session["state"] for session in sessions} == {"closed"})
