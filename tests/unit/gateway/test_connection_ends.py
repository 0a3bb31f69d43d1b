"""How connections end: what the client is told, what its session is closed as, and that no trace stays."""

import asyncio
import gc
import json
import time

import pytest
from aiohttp import web

from events import session
from service.delivery import repair
from service.gateway.connection import Connection
from service.gateway.signalr.machine import Limits
from service.log.author import Author
from tests.servers.gateway import HUB, SUBJECTS, MakeNode, Node, until
from tests.servers.raw_signalr import HANDSHAKE, RawClient


def alive(node: Node) -> int:
    """Connections of this node that are still in memory."""
    return sum(type(found) is Connection and found.context is node.context for found in gc.get_objects())


async def last_word(client: RawClient) -> tuple[str, bool]:
    """The code of the Close, and whether the client may come back."""
    close = json.loads(await client.record(containing=b'"type":7'))
    await client.end()
    return close["error"].split(": ")[0], close.get("allowReconnect", False)


async def test_a_client_that_says_close(node: Node):
    async with node.client() as client:
        client.send(b'{"type":7}\x1e')
        await client.end()
        assert not any(b'"type":7' in record for record in client.records)
    assert await node.closed_as() == "client"
    await node.empty()


async def test_calls_in_front_of_a_close_are_made(node: Node):
    async with node.client() as client:
        client.send(
            b'{"type":1,"target":"hub.invoke","arguments":[{"to":"all"},"say",[]]}\x1e{"type":7}\x1e'
            b'{"type":1,"target":"hub.invoke","arguments":[{"to":"all"},"late",[]]}\x1e'
        )
        await client.end()
    assert await node.closed_as() == "client"
    assert len(node.log.events(SUBJECTS.all())) == 1
    await node.empty()


async def test_a_transport_that_is_cut(node: Node):
    async with node.client():
        pass
    assert await node.closed_as() == "transport_error"
    await node.empty()


async def test_a_websocket_closed_without_a_word_of_signalr(node: Node):
    async with node.client() as client:
        client.send((1000).to_bytes(2, "big"), 0x8)
        await client.end()
    assert await node.closed_as() == "transport_error"
    await node.empty()


async def test_a_client_that_falls_silent(make_node: MakeNode):
    node = await make_node(limits=Limits(ping_s=0.05, silence_s=0.3))
    async with node.client() as client:
        assert await last_word(client) == ("client_timeout", True)
        assert b'{"type":6}' in client.records
    assert await node.closed_as() == "timeout"
    await node.empty()


async def test_pings_go_out_in_the_silence_of_sending_only(make_node: MakeNode):
    node = await make_node(limits=Limits(ping_s=0.2))
    async with node.client() as client:
        until_s = time.monotonic() + 0.5
        while time.monotonic() < until_s:
            await client.call("hub.groups", b"[]")
            await asyncio.sleep(0.01)
        assert b'{"type":6}' not in client.records
        await client.record(containing=b'{"type":6}')


async def test_a_client_that_does_not_read(make_node: MakeNode):
    node = await make_node(outbox_bytes_max=64 * 1024)
    async with node.client() as stuck, node.client() as ann:
        session_id = await node.session_of(stuck)
        stuck.stop_reading()
        piece = json.dumps([{"to": "all"}, "say", ["x" * 16_000]]).encode()
        connection = next(iter(node.context.coordinator))
        sent = 0
        while not connection.ended:
            assert "error" not in await ann.call("hub.invoke", piece)
            sent += 1
        assert await node.closed_as(session_id) == "slow_consumer"
        await until(lambda: len(node.context.coordinator) == 1, "its socket to be gone")
        await until(lambda: sum(b'"say"' in record for record in ann.records) == sent, "everything to reach the others")
    assert node.context.counters.slow == 1
    await node.empty()


async def test_a_client_that_reads_too_slowly_for_too_long(make_node: MakeNode):
    node = await make_node(outbox_bytes_max=1 << 30, outbox_age_s=0.2)
    async with node.client() as stuck, node.client() as ann:
        session_id = await node.session_of(stuck)
        stuck.stop_reading()
        piece = json.dumps([{"to": "client", "session": session_id}, "say", ["x" * 30_000]]).encode()
        connection = next(iter(node.context.coordinator))
        while connection.outbox.waiting_bytes == 0:
            await ann.call("hub.invoke", piece)
        assert await node.closed_as(session_id) == "slow_consumer"
    await node.empty()


async def test_one_who_was_overtaken_by_a_lost_message_comes_back(node: Node):
    async with node.client() as client, node.client() as bob:
        session_id = await node.session_of(client)
        invoke = b'[{"to":"client","session":"%s"},"say",["%s"]]'
        node.log.drop_next_live()
        await bob.call("hub.invoke", invoke % (session_id.encode(), b"lost"))
        await bob.call("hub.invoke", b'[{"to":"all"},"say",["later"]]')
        await client.record(containing=b'"later"')
        await repair.look_behind(node.dispatcher, list(node.dispatcher.interest.chains()))
        assert await last_word(client) == ("hole", True)
        assert not any(b'"lost"' in record for record in client.records)
        assert await node.closed_as(session_id) == "hole"
        assert "result" in await bob.call("hub.groups", b"[]")
    await node.empty()


@pytest.mark.parametrize("reason", ["kicked", "superseded"])
async def test_a_session_that_is_closed_elsewhere(node: Node, reason: session.Closing):
    async with node.client() as client:
        await client.call("hub.join", b'["red"]')
        (subject,) = node.log.sessions()
        for event in session.decide(node.log.sessions()[subject], session.Close(reason)):
            node.log.store(subject, Author().write(event, actor="system:api"))
        assert await last_word(client) == ("kicked", False)
    assert await node.closed_as() == reason
    await node.empty()
    assert len(node.log.events(subject)) == 3, "closed once"


@pytest.mark.parametrize(
    ("frame", "opcode", "code"),
    [
        (b"\x00\x01", 0x2, "bad_message"),
        (b"}{\x1e", 0x1, "bad_message"),
        (b'{"type":6,"x":"' + b"x" * 40_000 + b'"}\x1e', 0x1, "message_too_large"),
    ],
)
async def test_who_breaks_the_protocol(node: Node, frame: bytes, opcode: int, code: str):
    async with node.client() as client:
        client.send(frame, opcode)
        assert await last_word(client) == (code, False)
    assert await node.closed_as() == "transport_error"
    await node.empty()


async def test_a_frame_that_nobody_would_collect(node: Node):
    async with node.client() as client:
        client.send(b"x" * 300_000)
        await client.end()
        assert client.close_code == 1009
    assert await node.closed_as() == "transport_error"
    await node.empty()


async def test_sessions_are_closed_once_the_log_is_back(node: Node):
    async with node.client():
        node.log.disconnect()
    await until(
        lambda: len(node.context.closings) == 1 and not len(node.context.coordinator), "the connection to be gone"
    )
    node.log.reconnect()
    assert await node.closed_as() == "transport_error"
    await node.empty()


async def test_a_drain_gives_up_on_a_log_that_does_not_return(node: Node, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("service.gateway.server.CLOSINGS_GRACE_S", 0.1)
    async with node.client() as client:
        await node.session_of(client)
        node.log.disconnect()
        async with asyncio.timeout(2):
            await node.server.drain(0.2)
        assert await last_word(client) == ("shutdown", True)
    await until(lambda: len(node.context.closings) == 0, "the closing to be given up")


async def test_a_join_that_is_under_way_when_its_client_goes(node: Node):
    async with node.client() as client:
        await node.session_of(client)
        node.log.may_answer.clear()
        client.send(b'{"type":1,"invocationId":"j","target":"hub.join","arguments":["red"]}\x1e')
        await until(lambda: node.log.waiting == 1, "the join to wait for its answer")
    node.log.may_answer.set()
    assert await node.closed_as() == "transport_error"
    await node.empty()


async def test_an_ended_connection_is_freed_although_it_has_left_a_group(node: Node):
    """Those who left a group are remembered for late messages; it must not keep their connections alive."""
    async with node.client() as ann:
        await ann.call("hub.join", b'["red"]')
        async with node.client() as client:
            await client.call("hub.join", b'["red"]')
            await client.call("hub.leave", b'["red"]')
            await client.call("hub.groups", b"[]")
        await until(lambda: alive(node) == 1, "it to be freed, and not by the collector")


def sockets() -> list[object]:
    """What the web server keeps of a WebSocket, its request and its transport hang on it."""
    return [one for one in gc.get_objects() if isinstance(one, web.WebSocketResponse)]


NO_HANDSHAKE = {"no handshake", "no JSON", "refused"}
WAYS = [
    "cut",
    "close",
    "websocket close",
    "broken",
    "oversized",
    "kicked",
    "slow",
    "silent",
    "drain",
    "gone before its Close is read",
    "never asked",
    *sorted(NO_HANDSHAKE),
]


@pytest.mark.parametrize("how", WAYS)
async def test_whatever_ends_it_a_connection_leaves_no_cycle_behind(make_node: MakeNode, how: str):
    """A cycle would wait for the collector, which a gateway lets run seldom."""
    query = "?resumable=1" if how == "never asked" else ""
    limits = Limits(silence_s=0.1, handshake_s=0.1) if how in {"silent", "no handshake"} else Limits()
    node = await make_node(limits=limits, outbox_bytes_max=200_000)
    node.context.draining = how == "refused"
    gc.collect()
    gc.disable()
    try:
        async with node.client(query, handshake=None if how in NO_HANDSHAKE else HANDSHAKE) as client:
            await do(how, node, client)
            if how not in {"cut", "slow", "gone before its Close is read", "never asked"}:
                await client.end()
        await node.empty()
        await until(lambda: alive(node) == 0 and not sockets(), "it to be freed")
    finally:
        gc.enable()


async def do(how: str, node: Node, client: RawClient) -> None:
    match how:
        case "close":
            client.send(b'{"type":7}\x1e')
        case "websocket close":
            client.send((1000).to_bytes(2, "big"), 0x8)
        case "broken" | "no JSON":
            client.send(b"}{\x1e")
        case "refused":
            client.send(HANDSHAKE)
        case "oversized":
            client.send(b"x" * 300_000)
        case "kicked":
            (subject,) = node.log.sessions()
            for event in session.decide(node.log.sessions()[subject], session.Close("kicked")):
                node.log.store(subject, Author().write(event, actor="system:api"))
        case "gone before its Close is read":
            (connection,) = node.context.coordinator
            node.log.may_answer.clear()
            client.send(b'{"type":1,"target":"hub.join","arguments":["red"]}\x1e')
            client.send(b'{"type":7}\x1e')
            await until(lambda: node.log.waiting == 1, "the join to wait for its answer")
            client.writer.transport.abort()
            await until(connection.outbox._transport.is_closing, "the cut to be noticed")
            node.log.may_answer.set()
        case "slow":
            client.stop_reading()
            own = await node.context.hubs.manager(HUB)
            while node.context.counters.slow == 0:
                await own.router.all("say", "x" * 30_000)
        case "drain":
            await node.server.drain(0.1)
