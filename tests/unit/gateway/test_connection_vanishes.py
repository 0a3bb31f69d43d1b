"""Clients that are suddenly gone, in every phase: nobody else feels it, and nothing of them stays."""

import asyncio
import json
from typing import Any

import msgspec
import pytest

from events import session
from events.errors import LogUnavailable
from events.ids import SessionId
from lab.frames import PING
from service.delivery.outbox import Outbox
from service.log.fenced import FencedLog
from tests.servers.gateway import HUB, SUBJECTS, Node, until
from tests.servers.raw_signalr import HANDSHAKE, RawClient


class GoneTransport(asyncio.WriteTransport):
    """As uvloop's after the connection was lost."""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        raise RuntimeError("unable to perform operation; the handler is closed")

    def get_write_buffer_size(self) -> int:
        return 0


def test_an_outbox_without_a_transport_takes_frames_and_forgets_them():
    outbox = Outbox(GoneTransport(), 100, lambda: pytest.fail("not slow, gone"))
    outbox.uncork(b"{}")
    outbox.write(b"x")
    outbox.check_age(1e9, 1.0)
    assert not outbox.open


async def test_one_who_is_gone_does_not_keep_a_message_from_the_others(node: Node):
    async with node.client() as ann, node.client() as gone, node.client() as bob:
        for client in (ann, gone, bob):
            await client.call("hub.join", b'["red"]')
        node.log.may_append.clear()
        gone.send(b'{"type":1,"invocationId":"j","target":"hub.join","arguments":["blue"]}\x1e')
        await until(lambda: node.log.waiting == 1, "its join to wait for the log")
        connection = list(node.context.coordinator)[1]
        gone.writer.transport.abort()
        await until(connection.outbox._transport.is_closing, "the transport to be gone")
        await asyncio.sleep(0.05)  # some rounds of timers as well
        done = await ann.call("hub.invoke", b'[{"to":"group","group":"red"},"say",["hi"]]')
        assert done["result"]["outcome"] == "accepted"
        for client in (ann, bob):
            await client.record(containing=b'"say"')
        node.log.may_append.set()
    await node.empty()


async def test_who_pings_and_is_gone_before_the_pong_is_no_failure_of_ours(node: Node):
    async with node.client() as client:
        node.log.may_append.clear()
        client.send(b'{"type":1,"invocationId":"j","target":"hub.join","arguments":["blue"]}\x1e')
        await until(lambda: node.log.waiting == 1, "its join to wait for the log")
        for _ in range(10):
            client.send(b"still there?", PING)
        await client.writer.drain()
        await _vanishes(node, client)
        node.log.may_append.set()
    await node.empty()
    assert node.context.counters.errors == {}


async def _waits(node: Node) -> tuple[dict[str, Any], str]:
    """A session that waits to be resumed: what its client was told, and its subject."""
    async with node.client("?resumable=1") as client:
        first = (await client.call("hub.session", b"[]"))["result"]
    subject = SUBJECTS.session(SessionId(first["sessionId"]))
    await until(lambda: node.log.sessions()[subject].status == "detached", "the detach")
    return first, subject


async def _vanishes(node: Node, client: RawClient) -> None:
    (connection,) = node.context.coordinator
    client.writer.transport.abort()
    await until(connection.outbox._transport.is_closing, "the transport to be gone")


async def test_who_is_gone_takes_no_session_from_where_it_is_now(node: Node):
    first, subject = await _waits(node)
    node.log.may_read.clear()
    query = f"?resumable=1&resume={first['resumeToken']}&cursor={first['cursor']}"
    async with node.client(query, handshake=None) as client:
        client.send(HANDSHAKE)
        await until(lambda: node.log.waiting == 1, "it to wait for the log")
        await _vanishes(node, client)
        elsewhere = session.Attach("other", "i2", "elsewhere", 1, 0, 1 << 60)
        (event,) = session.decide(node.log.sessions()[subject], elsewhere)
        node.log.store(subject, node.context.author.write(event, actor=f"session:{first['sessionId']}"))
        node.log.may_read.set()
        await node.empty()
    assert node.log.sessions()[subject].connection == "elsewhere"
    assert node.log.sessions()[subject].status == "active"


async def test_who_loses_a_session_while_taking_it_over_leaves_none_behind(node: Node):
    """Neither that one, which goes on elsewhere, nor its own, which nobody else would ever end."""
    first, subject = await _waits(node)
    async with node.client("?resumable=1") as client:
        own = SUBJECTS.session(SessionId((await client.call("hub.session", b"[]"))["result"]["sessionId"]))
        node.log.may_answer.clear()
        asked = msgspec.json.encode([first["resumeToken"], first["cursor"]])
        client.send(b'{"type":1,"invocationId":"r","target":"hub.resume","arguments":%s}\x1e' % asked)
        await until(lambda: node.log.sessions()[subject].status == "active", "the attach")
        elsewhere = session.Attach("other", "i2", "elsewhere", 1, 0, 1 << 60)
        (event,) = session.decide(node.log.sessions()[subject], elsewhere)
        node.log.store(subject, node.context.author.write(event, actor=f"session:{first['sessionId']}"))
        await client.record(containing=b"replaced")
        node.log.may_answer.set()
        await client.end()
    await node.empty()
    assert (node.log.sessions()[own].status, node.log.sessions()[own].reason) == ("closed", "superseded")
    assert (node.log.sessions()[subject].status, node.log.sessions()[subject].connection) == ("active", "elsewhere")


@pytest.mark.parametrize("missed_by", ["the one taken over", "its own"])
async def test_a_hole_while_a_session_is_taken_over_concerns_one_of_the_two(node: Node, missed_by: str):
    first, subject = await _waits(node)
    async with node.client("?resumable=1") as client:
        mine = (await client.call("hub.session", b"[]"))["result"]["sessionId"]
        own = SUBJECTS.session(SessionId(mine))
        node.log.may_answer.clear()
        asked = msgspec.json.encode([first["resumeToken"], first["cursor"]])
        client.send(b'{"type":1,"invocationId":"r","target":"hub.resume","arguments":%s}\x1e' % asked)
        await until(lambda: node.log.sessions()[subject].status == "active", "the attach")
        chain = node.dispatcher.interest.hubs[HUB].chains[subject if missed_by == "the one taken over" else own]
        (receiver,) = chain.members.values()
        node.dispatcher.hole(receiver, 2)
        close = json.loads(await client.record(containing=b'{"type":7'))
        assert close["error"].startswith("hole: ")
        assert close["allowReconnect"] is True
        node.log.may_answer.set()
        await client.end()
    await node.empty()
    events = [event for _, event in node.log.events(subject)]
    assert isinstance(events[-1], session.Detached)
    assert events[-1].rewind is None, "nothing of it was written here, so nothing need be written again"
    if missed_by == "its own":
        state = node.log.sessions()[own]
        assert (state.status, state.rewind) == ("detached", session.Rewind(1, state.generation))
    else:
        assert (node.log.sessions()[own].status, node.log.sessions()[own].reason) == ("closed", "superseded")


async def test_who_is_gone_does_not_insist(node: Node):
    """It would do so for ever in a node that was called lost meanwhile, with its turn and its session's lock."""
    first, _ = await _waits(node)
    query = f"?resumable=1&resume={first['resumeToken']}&cursor={first['cursor']}"
    life = "i"
    node.log.fail_append = LogUnavailable("no answer")

    manager = await node.context.hubs.manager(HUB)
    runner = manager.sessions._runner
    runner._log = FencedLog(node.log, lambda: False, lambda: life)
    async with node.client(query, handshake=None) as client:
        client.send(HANDSHAKE)
        await asyncio.sleep(0.3)
        life = node.context.incarnation = "i2"
        node.log.fail_append = None
        node.server.end_all("this node was taken for lost", "node_lost")
        await client.end()
    async with node.client(query) as client:
        again = (await client.call("hub.session", b"[]"))["result"]
        assert (again["sessionId"], again["resumed"]) == (first["sessionId"], True)
    await node.empty()


@pytest.mark.parametrize("query", ["", "?resumable=1"])
async def test_an_open_that_arrives_after_it_was_given_up_leaves_no_session_behind(node: Node, query: str):
    node.log.under_way = []
    async with node.client(query, handshake=None) as client:
        client.send(HANDSHAKE)
        await client.record(containing=b"outcome_unknown")
        await client.end()
    await until(lambda: not len(node.context.coordinator), "the connection to be gone")
    late, node.log.under_way = node.log.under_way, None
    await node.empty()
    node.log.under_way = late
    await node.log.arrive()
    assert [state.status for state in node.log.sessions().values()] == ["detached" if query else "closed"]


async def test_an_attach_that_arrives_after_it_was_given_up_takes_no_session_for_nobody(node: Node):
    first, subject = await _waits(node)
    node.log.under_way = []
    query = f"?resumable=1&resume={first['resumeToken']}&cursor={first['cursor']}"
    async with node.client(query, handshake=None) as client:
        client.send(HANDSHAKE)
        await until(lambda: bool(node.log.under_way), "the attach to be on its way")
        await _vanishes(node, client)
        node.log.fail_append = LogUnavailable("no answer")  # what it says last is not the whole truth
        await until(lambda: not len(node.context.coordinator), "the connection to be gone")
    late, node.log.under_way, node.log.fail_append = node.log.under_way, None, None
    await node.empty()
    node.log.under_way = late
    assert await node.log.arrive() == 0
    assert node.log.sessions()[subject].status == "detached"
    async with node.client(query) as client:
        again = (await client.call("hub.session", b"[]"))["result"]
        assert (again["sessionId"], again["resumed"], again["resync"]) == (first["sessionId"], True, None)


async def test_what_happens_to_a_session_while_it_is_taken_over_is_known_where_it_comes_to(node: Node):
    first, subject = await _waits(node)
    node.log.may_answer.clear()
    query = f"?resumable=1&resume={first['resumeToken']}&cursor={first['cursor']}"
    async with node.client(query, handshake=None) as client:
        client.send(HANDSHAKE)
        await until(lambda: node.log.sessions()[subject].status == "active", "the attach")
        (event,) = session.decide(node.log.sessions()[subject], session.Join(("red",)))
        joined = node.log.store(subject, node.context.author.write(event, actor="system:api"))
        await until(lambda: node.dispatcher.position == joined, "the join to be heard")
        node.log.may_answer.set()
        await client.record(containing=b"{}")
        assert (await client.call("hub.session", b"[]"))["result"]["groups"] == ["red"]
        assert (await client.call("hub.groups", b"[]"))["result"] == ["red"]
    await node.empty()


async def test_a_session_that_was_here_for_a_moment_and_is_then_refused_is_not_known_here(node: Node):
    first, subject = await _waits(node)
    node.log.under_way = []
    query = f"?resumable=1&resume={first['resumeToken']}&cursor={first['cursor']}"
    async with node.client(query, handshake=None) as client:
        client.send(HANDSHAKE)
        await until(lambda: bool(node.log.under_way), "the attach to be on its way")
        node.log.may_read.clear()
        assert await node.log.arrive() == 1
        await until(lambda: node.log.waiting == 1, "it to look what became of it")
        for generation in (2, 3):
            elsewhere = session.Attach("other", "i2", f"elsewhere-{generation}", generation, 0, 1 << 60)
            (event,) = session.decide(node.log.sessions()[subject], elsewhere)
            node.log.store(subject, node.context.author.write(event, actor=f"session:{first['sessionId']}"))
        await until(lambda: next(iter(node.context.coordinator)).ended, "it to be told")
        node.log.may_read.set()
        await client.end()
    await node.empty()
    assert node.log.sessions()[subject].connection == "elsewhere-3"
