"""From the handshake to the open session: what may go wrong meanwhile, and what is left then."""

import asyncio
import json
from typing import Any

import pytest

from events import session
from events.errors import LogUnavailable, OutcomeUnknown
from service.gateway import opening as gateway_opening
from service.gateway.signalr.machine import Limits
from service.log.author import Author
from tests.servers.gateway import SUBJECTS, MakeNode, Node, until
from tests.servers.raw_signalr import HANDSHAKE, RawClient

CALL = b'{"type":1,"invocationId":"1","target":"hub.session","arguments":[]}\x1e'


async def opening(node: Node, client: RawClient) -> str:
    """Shake hands while the log does not take the session; gives the subject that it waits to write."""
    node.log.may_answer.clear()
    client.send(HANDSHAKE)
    await until(lambda: node.log.waiting == 1, "the session to be on its way to the log")
    return list(node.log.sessions())[-1]


def close_elsewhere(node: Node, subject: str, reason: session.Closing = "kicked") -> None:
    """As another node does."""
    state = node.log.sessions()[subject]
    for event in session.decide(state, session.Close(reason)):
        node.log.store(subject, Author().write(event, actor="system:api"))


async def test_the_handshake_is_answered_when_the_log_has_the_session(node: Node):
    async with node.client(handshake=None) as client:
        await opening(node, client)
        assert client.records == []
        node.log.may_answer.set()
        await client.record(containing=b"{}")
        assert next(iter(node.log.sessions().values())).status == "active"


async def test_what_comes_before_the_answer_waits_for_it_in_both_directions(node: Node):
    async with node.client() as ann, node.client("?user=bob", handshake=None) as client:
        node.log.may_answer.clear()
        client.send(HANDSHAKE + CALL)
        await until(lambda: node.log.waiting == 1, "the session to be on its way to the log")
        ann.send(b'{"type":1,"target":"hub.invoke","arguments":[{"to":"all"},"say",["early"]]}\x1e')
        await ann.record(containing=b'"early"')
        node.log.may_answer.set()
        await client.record(containing=b'"invocationId":"1"')
        assert client.records[0] == b"{}"
        assert [json.loads(record)["type"] for record in client.records[1:]] == [1, 3]


async def test_who_is_kicked_while_opening_is_told_and_forgotten(node: Node):
    async with node.client(handshake=None) as client:
        subject = await opening(node, client)
        close_elsewhere(node, subject)
        assert json.loads(await client.record(containing=b'"error"'))["error"].startswith("kicked: ")
        node.log.may_answer.set()
        await client.end()
    await node.empty()
    assert [type(event).__name__ for _, event in node.log.events(subject)] == ["Opened", "Closed"]


async def test_nothing_follows_a_refused_handshake(node: Node):
    async with node.client() as ann, node.client(handshake=None) as client:
        subject = await opening(node, client)
        ann.send(b'{"type":1,"target":"hub.invoke","arguments":[{"to":"all"},"say",["early"]]}\x1e')
        await ann.record(containing=b'"early"')
        close_elsewhere(node, subject)
        await client.end()
        assert len(client.records) == 1
        node.log.may_answer.set()
    await node.empty()


async def test_a_client_that_leaves_while_its_session_is_opened_leaves_none_behind(node: Node):
    async with node.client(handshake=None) as client:
        await opening(node, client)
    node.log.may_answer.set()
    assert await node.closed_as() == "transport_error"
    await node.empty()


async def test_a_close_in_the_frame_of_the_handshake_is_obeyed(node: Node):
    async with node.client(handshake=None) as client:
        client.send(HANDSHAKE + b'{"type":7}\x1e')
        await client.end()
    assert await node.closed_as() == "client"
    await node.empty()


async def test_without_a_log_the_handshake_is_refused_and_nothing_waits_for_its_return(node: Node):
    node.log.disconnect()
    for _ in range(3):
        async with node.client(handshake=None) as client:
            client.send(HANDSHAKE)
            assert json.loads(await client.record(containing=b"error"))["error"].startswith("log_unavailable: ")
            await client.end()
    await node.empty()
    assert node.log.sessions() == {}


async def test_a_session_of_which_nobody_knows_is_closed_when_the_log_answers(node: Node):
    node.log.fail_append = OutcomeUnknown("no answer")
    async with node.client(handshake=None) as client:
        client.send(HANDSHAKE)
        assert json.loads(await client.record(containing=b"error"))["error"].startswith("outcome_unknown: ")
        await client.end()
    node.log.fail_append = None
    assert await node.closed_as() == "transport_error"
    await node.empty()


async def test_beyond_a_bound_of_sessions_to_close_nobody_new_is_taken(node: Node, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(gateway_opening, "CLOSINGS_MAX", 1)
    async with node.client() as ann:
        node.log.fail_append = LogUnavailable("away")
        await ann.call("hub.groups", b"[]")
    await until(lambda: len(node.context.closings) == 1, "the closing to wait")
    async with node.client(handshake=None) as client:
        client.send(HANDSHAKE)
        assert json.loads(await client.record(containing=b"error"))["error"].startswith("log_overloaded: ")
    node.log.fail_append = None
    await node.empty()


async def test_a_defect_while_opening_is_said_to_the_client(make_node: MakeNode):
    def broken(*_: Any) -> Any:
        raise ZeroDivisionError

    node = await make_node(factory=lambda _log, _author: broken)
    async with node.client(handshake=None) as client:
        client.send(HANDSHAKE)
        assert json.loads(await client.record(containing=b"error"))["error"].startswith("internal: ")
        await client.end()
    await node.empty()


async def test_no_handshake_in_time_is_an_error(make_node: MakeNode):
    node = await make_node(limits=Limits(handshake_s=0.05))
    async with node.client(handshake=None) as client:
        await client.end()
        (said,) = client.records
        assert json.loads(said)["error"].startswith("handshake_timeout: ")
    assert node.log.sessions() == {}
    await node.empty()


async def test_a_slow_log_is_not_held_against_a_client_that_waits_for_it(make_node: MakeNode):
    node = await make_node(limits=Limits(silence_s=0.1, handshake_s=0.1))
    async with node.client(handshake=None) as client:
        await opening(node, client)
        await asyncio.sleep(0.3)
        node.log.may_answer.set()
        await client.record(containing=b"{}")
        assert node.log.sessions().keys() == {SUBJECTS.session(await node.session_of(client))}


async def test_draining_ends_connections_in_every_phase(node: Node):
    async with (
        node.client() as ready,
        node.client(handshake=None) as silent,
        node.client(handshake=None) as client,
    ):
        first = await node.session_of(ready)
        await opening(node, client)
        draining = asyncio.ensure_future(node.server.drain(2.0))
        close = json.loads(await ready.record(containing=b'"type":7'))
        assert close["error"].startswith("shutdown: ")
        assert close["allowReconnect"] is True
        for other in (silent, client):
            assert json.loads(await other.record(containing=b"error"))["error"].startswith("shutdown: ")
        assert not draining.done(), "the session that is being opened has to be closed first"
        node.log.may_answer.set()
        await draining
        assert {state.reason for state in node.log.sessions().values()} == {"shutdown"}
        assert len(node.log.sessions()) == 2
        assert await node.closed_as(first) == "shutdown"
        async with node.client(handshake=None) as late:
            late.send(HANDSHAKE)
            assert json.loads(await late.record(containing=b"error"))["error"].startswith("shutting_down: ")
            await late.end()
    await node.empty()
