"""The Python client on real gateways: each handler sees each message once and in order, whatever is cut or killed."""

import asyncio
import itertools
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import pytest_asyncio

from hublog import Client, ClientClosed, Resync, ServerError, State, Timers
from hublog import inbox as hublog_inbox
from tests.servers.processes import gone, until
from tests.servers.proxy import Proxy, proxy_to
from tests.servers.questions import Api
from tests.servers.up import Up

pytestmark = pytest.mark.asyncio(loop_scope="module")

SETTINGS = {"HUBLOG_OUTBOX_BYTES_MAX": "256KiB"}
OPTIONS = ()  # a killed gateway comes back: the last test kills one
QUICK = Timers(backoff_longest_s=0.25)  # cut ten times within seconds, the pauses would grow
GROUP = {"to": "group", "group": "lobby"}


class Reader:
    """What one client was given, in order, and everything that was said about it."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.given: list[int] = []
        self.states: list[State] = []
        self.resyncs: list[Resync] = []
        client.on("count", self.given.append)
        client.on_state(self.states.append)
        client.on_resync(self.resyncs.append)

    async def has(self, last: int) -> list[int]:
        await until(lambda: bool(self.given) and self.given[-1] == last, what=f"message {last}", timeout_s=30)
        return self.given


class Counter:
    """Says 1, 2, 3 … to the group while a test does its harm."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.said = 0
        self._stop = asyncio.Event()
        self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        for number in itertools.count(1):
            if self._stop.is_set():
                return
            await self.client.invoke(GROUP, "count", number)
            self.said = number

    async def reach(self, number: int) -> None:
        await until(lambda: self.said >= number or self._task.done(), what=f"{number} to be said", timeout_s=30)
        assert not self._task.done(), self._task

    async def finish(self) -> int:
        self._stop.set()
        await self._task
        return self.said


@pytest_asyncio.fixture(loop_scope="module")
async def proxies(gateways: tuple[str, str]) -> AsyncIterator[tuple[Proxy, Proxy]]:
    first, second = (urlsplit(gateway) for gateway in gateways)
    async with (
        proxy_to(first.hostname or "", first.port or 0) as one,
        proxy_to(second.hostname or "", second.port or 0) as two,
    ):
        yield one, two


async def test_a_single_session_calls_itself(gateways: tuple[str, str], hub: str) -> None:
    async with Client(gateways[0], hub, user="ann", metadata={"a": [1, "é+&"]}) as client:
        said: list[object] = []
        client.on("say", lambda *arguments: said.extend(arguments))
        assert client.state is State.ACTIVE
        joined = await client.join("lobby", "bar")
        assert joined.groups == ("bar", "lobby")
        answer = await client.invoke(GROUP, "say", "ann", {"text": "hello"}, None, 2**40)
        assert (answer.outcome, answer.position is not None) == ("accepted", True)
        await until(lambda: len(said) == 4, what="the message")
        assert said == ["ann", {"text": "hello"}, None, 2**40]
        assert (await client.leave("bar")).groups == ("lobby",)
        assert (await client.leave_all()).groups == ()
        assert await client.groups() == ()
        session = await client.session()
        assert (session.session_id, session.user_id, session.resumed) == (client.session_id, "ann", False)
        with pytest.raises(ServerError) as refused:
            await client.invoke({"to": "moon"}, "say")
        assert (refused.value.code, refused.value.retryable) == ("invalid_selector", False)
        assert refused.value.hint.startswith("Send one selector")
    assert str(client.state) == "closed"
    with pytest.raises(ClientClosed):
        await client.groups()


async def test_leaving_closes_the_session(gateways: tuple[str, str], hub: str, api: Api) -> None:
    async with Client(gateways[0], hub):
        pass
    events = await api.until("events", lambda events: len(events) == 2)
    assert [event["data"].get("reason") for event in events][1] == "client"


async def test_leaving_while_it_reconnects_closes_the_session(
    gateways: tuple[str, str], proxies: tuple[Proxy, Proxy], hub: str, api: Api
) -> None:
    urls = [f"http://127.0.0.1:{proxy.port}" for proxy in proxies]
    never = Timers(backoff_first_s=1e6, backoff_longest_s=1e6)  # it sleeps, so it is closed where it has no connection
    async with Client(urls, hub, timers=never) as client:
        session = client.session_id
        assert session is not None
        for proxy in proxies:
            proxy.cut()
        await until(lambda: client.state is State.RECONNECTING, what="the loss")
        proxies[0].heal()  # the other still refuses
    history = await api.closed_history(session)
    assert [event["data"].get("reason") for event in history if event["type"] == "session.closed.v1"] == ["client"]
    proxies[1].heal()


async def test_leaving_while_it_connects_closes_the_session(
    gateways: tuple[str, str], proxies: tuple[Proxy, Proxy], hub: str, api: Api
) -> None:
    """The gateway has opened the session, and its client has not heard so."""
    proxy, _ = proxies

    def only_the_upgrade(chunk: bytes) -> bytes:
        proxy.stall("down")
        return chunk

    proxy.edit = only_the_upgrade
    client = Client(f"http://127.0.0.1:{proxy.port}", hub)
    entering = asyncio.create_task(client.__aenter__())
    (session,) = await api.until("sessions", lambda sessions: len(sessions) == 1)
    assert (session["state"], client.state) == ("active", State.CONNECTING)
    await client.close()
    await entering
    history = await api.closed_history(session["sessionId"])
    assert [event["data"].get("reason") for event in history] == [None, "client"]


async def test_many_sessions_in_one_process_each_have_their_own(gateways: tuple[str, str], hub: str) -> None:
    """Resumable and plain ones side by side, on both nodes."""
    clients = [Client(gateways[n % 2], hub, user=f"user-{n}", resumable=n % 3 != 0) for n in range(12)]
    readers = [Reader(client) for client in clients]
    try:
        await asyncio.gather(*(client.__aenter__() for client in clients))
        assert len({client.session_id for client in clients}) == len(clients)
        await asyncio.gather(*(client.join("lobby") for client in clients[::2]))
        counter = Counter(clients[1])
        await counter.reach(100)
        last = await counter.finish()
        for reader in readers[::2]:
            assert await reader.has(last) == list(range(1, last + 1))
        await clients[0].invoke({"to": "user", "user": "user-5"}, "count", -1)
        await readers[5].has(-1)
        assert [reader.given for reader in readers[1::2]] == [[], [], [-1], [], [], []]
    finally:
        await asyncio.gather(*(client.close() for client in clients))


async def test_cut_connections_are_resumed_without_gap_or_repeat(
    gateways: tuple[str, str], proxies: tuple[Proxy, Proxy], hub: str
) -> None:
    """Both the speaker and the readers lose their connections, again and again, under traffic."""
    urls = [f"http://127.0.0.1:{proxy.port}" for proxy in proxies]
    async with (
        Client(urls, hub, timers=QUICK) as speaker,
        Client(urls, hub, timers=QUICK) as one,
        Client(urls[::-1], hub, timers=QUICK) as two,
    ):
        readers = [Reader(one), Reader(two)]
        sessions = [client.session_id for client in (speaker, one, two)]
        await asyncio.gather(one.join("lobby"), two.join("lobby"))
        counter = Counter(speaker)
        for cut in range(10):
            await counter.reach(counter.said + 20)
            proxies[cut % 2].reset()
            if cut % 3 == 0:
                proxies[1 - cut % 2].reset()
        last = await counter.finish()
        for reader in readers:
            assert await reader.has(last) == list(range(1, last + 1))
            assert reader.resyncs == []
            assert reader.client._handlers.repeats == 0, "the service repeats nothing; the client need not hide it"
            assert State.RECONNECTING in reader.states
        assert [client.session_id for client in (speaker, one, two)] == sessions


async def test_a_plain_client_is_told_that_its_session_is_another(
    gateways: tuple[str, str], proxies: tuple[Proxy, Proxy], hub: str
) -> None:
    async with Client(f"http://127.0.0.1:{proxies[0].port}", hub, resumable=False) as client:
        reader = Reader(client)
        before = client.session_id
        await client.join("lobby")
        proxies[0].reset()
        await until(lambda: bool(reader.resyncs), what="the resync")
        (told,) = reader.resyncs
        assert (told.kind, told.previous, told.session.session_id) == ("lost", before, client.session_id)
        assert client.session_id != before
        assert await client.groups() == (), "nobody joined again behind the user's back"


async def test_a_kicked_client_is_closed_and_says_why(gateways: tuple[str, str], hub: str, api: Api) -> None:
    async with Client(gateways, hub) as client:
        await api.call("DELETE", f"sessions/{client.session_id}")
        async with asyncio.timeout(10):
            await client.wait_closed()
        assert client.state is State.CLOSED
        assert client.error is not None
        assert client.error.code == "kicked"


@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        ({"hub": "Chat"}, "invalid_name"),
        ({"user": ""}, "invalid_name"),
        ({"metadata": {"a": "x" * 3000}}, "invalid_query"),
    ],
)
async def test_a_refusal_has_the_words_of_the_gateway(
    gateways: tuple[str, str], wrong: dict[str, Any], code: str
) -> None:
    with pytest.raises(ServerError) as refused:
        await Client(gateways[0], **{"hub": "chat", **wrong}).__aenter__()
    assert refused.value.code == code
    assert refused.value.hint != ""


async def test_a_client_whose_handlers_are_stuck_is_cut_off_and_loses_nothing(
    gateways: tuple[str, str], hub: str, monkeypatch: pytest.MonkeyPatch, api: Api
) -> None:
    """It stops reading, the gateway cuts it, and once its handlers go on it resumes where it stopped."""
    monkeypatch.setattr(hublog_inbox, "READ_ON_BYTES", 50_000)
    async with Client(gateways[0], hub) as speaker, Client(gateways[::-1], hub) as stuck:
        given: list[int] = []
        go = asyncio.Event()

        async def handle(number: int, _: str) -> None:
            await go.wait()
            given.append(number)

        stuck.on("count", handle)
        await stuck.join("lobby")
        session, number = stuck.session_id, 0
        while not await api.items("events", type="session.detached"):
            await asyncio.gather(*(speaker.invoke(GROUP, "count", number + n, 8_000 * "x") for n in range(200)))
            number += 200
            assert number < 20_000, "never cut off"
        await speaker.invoke(GROUP, "count", number, "")
        go.set()
        await until(lambda: bool(given) and given[-1] == number, what="the last message", timeout_s=30)
        assert given == list(range(number + 1))
        assert stuck.session_id == session
        (event,) = await api.items("events", type="session.detached")
        assert event["data"]["reason"] == "slow_consumer"


async def test_the_example_echoes(gateways: tuple[str, str]) -> None:
    program = Path(__file__).parents[2] / "examples" / "python" / "echo.py"
    echo = await asyncio.create_subprocess_exec(sys.executable, str(program), *gateways, stdout=asyncio.subprocess.PIPE)
    assert echo.stdout is not None
    try:
        async with asyncio.timeout(20):
            while (await echo.stdout.readline()) != b"* active\n":
                assert echo.returncode is None
        client = Client(gateways[1], "echo")
        said: list[str] = []
        client.on("said", said.append)
        async with client:
            await client.invoke({"to": "user", "user": "echo"}, "say", client.session_id, "hello")
            await until(lambda: said == ["hello"], what="the echo")
    finally:
        echo.terminate()
        await echo.wait()


def is_back(served: Up, index: int, pid: int) -> bool:
    """Another process serves in place of ``pid``."""
    return any((e.role, e.index) == ("gateway", index) and e.pid not in {pid, None} for e in served.entries)


async def test_a_rolling_restart_is_survived(served: Up, gateways: tuple[str, str], hub: str) -> None:
    """Both gateways are told to stop, one after the other, as a deploy does it; ``up`` starts them again."""
    async with Client(gateways, hub) as speaker, Client(gateways, hub) as one, Client(gateways[::-1], hub) as two:
        readers = [Reader(one), Reader(two)]
        sessions = [client.session_id for client in (speaker, one, two)]
        await asyncio.gather(one.join("lobby"), two.join("lobby"))
        counter = Counter(speaker)
        for index, reader in enumerate(readers):
            await counter.reach(counter.said + 50)
            pid, lost = served.entry("gateway", index).pid or 0, reader.states.count(State.ACTIVE)
            os.kill(pid, signal.SIGTERM)
            await until(lambda lost=lost, reader=reader: reader.states.count(State.ACTIVE) > lost, what="the resume")
            await until(lambda pid=pid: gone(pid), what="the end of the gateway")
            await until(lambda index=index, pid=pid: is_back(served, index, pid), what="another one", timeout_s=60)
            await counter.reach(counter.said + 50)
        last = await counter.finish()
        for reader in readers:
            assert await reader.has(last) == list(range(1, last + 1))
            assert reader.resyncs == []
            assert reader.client._handlers.repeats == 0
        assert [client.session_id for client in (speaker, one, two)] == sessions


async def test_a_killed_gateway_is_survived(served: Up, gateways: tuple[str, str], hub: str) -> None:
    async with (
        Client(gateways[1], hub) as speaker,
        Client(gateways, hub) as one,
        Client(gateways, hub) as two,
        Client(gateways[::-1], hub) as other,
    ):
        readers = [Reader(client) for client in (one, two, other)]
        sessions = [reader.client.session_id for reader in readers]
        await asyncio.gather(*(reader.client.join("lobby") for reader in readers))
        counter = Counter(speaker)
        await counter.reach(100)
        os.kill(served.entry("gateway", 0).pid, signal.SIGKILL)
        await until(lambda: State.ACTIVE in readers[0].states and State.ACTIVE in readers[1].states, what="the resume")
        await counter.reach(counter.said + 100)
        last = await counter.finish()
        for reader in readers:
            assert await reader.has(last) == list(range(1, last + 1))
            assert reader.resyncs == []
            assert reader.client._handlers.repeats == 0
        assert [reader.client.session_id for reader in readers] == sessions
        assert readers[2].states == [], "who was elsewhere noticed nothing"
