"""Resumable sessions on one gateway: what is answered, what is delivered when, and what is refused."""

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from events import session
from events.errors import LogUnavailable
from events.ids import SessionId
from service.gateway.methods import table
from tests.servers.gateway import HUB, SUBJECTS, MakeNode, Node, until
from tests.servers.raw_signalr import HANDSHAKE, RawClient


@pytest.fixture
async def node(make_node: MakeNode) -> Node:
    return await make_node()


async def asked(client: RawClient, target: str, *arguments: Any) -> Any:
    answer = await client.call(target, json.dumps(arguments).encode())
    return answer.get("result", answer.get("error"))


def said(client: RawClient) -> list[Any]:
    """The arguments of every ``say`` that came, in order."""
    return [json.loads(record)["arguments"] for record in client.records if b'"target":"say"' in record]


async def say(client: RawClient, *arguments: Any, to: dict[str, Any] | None = None) -> str:
    return str((await asked(client, "hub.invoke", to or {"to": "all"}, "say", list(arguments)))["position"])


def resume(answer: dict[str, Any], cursor: str | None = None, **more: str) -> str:
    rest = "".join(f"&{name}={value}" for name, value in more.items())
    return f"?resumable=1&resume={answer['resumeToken']}&cursor={cursor or answer['cursor']}{rest}"


@pytest.fixture
async def speaker(node: Node) -> AsyncIterator[RawClient]:
    async with node.client("?user=speaker") as client:
        yield client


async def test_positions_come_as_a_last_argument_or_as_a_notice(node: Node, speaker: RawClient):
    async with node.client("?resumable=1") as typed, node.client("?resumable=notice") as noticed:
        for client in (typed, noticed):
            assert (await asked(client, "hub.session"))["resumed"] is False
        first, second = await say(speaker), await say(speaker, 1)
        await typed.record(containing=second.encode())
        await noticed.record(containing=second.encode())
        assert said(typed) == [[first], [1, second]]
        kinds = [(json.loads(one)["target"], json.loads(one)["arguments"]) for one in noticed.records[2:]]
        assert kinds == [("say", []), ("hub.cursor", [first]), ("say", [1]), ("hub.cursor", [second])]


async def test_delivery_begins_with_the_first_question(node: Node, speaker: RawClient):
    async with node.client("?resumable=1") as client:
        position = await say(speaker, "early")
        await until(lambda: node.dispatcher.counters.deliveries == 2, "both to be given it")
        assert said(client) == []
        answer = await asked(client, "hub.session")
        await client.record(containing=position.encode())
        assert said(client) == [["early", position]]
        assert answer["cursor"] < position
        # What its cursor does not cover comes behind it, or who goes by it would get that twice.
        assert [json.loads(one).get("type") for one in client.records] == [None, 3, 1]


async def test_a_cut_session_goes_on_where_it_was(node: Node, speaker: RawClient):
    async with node.client("?user=ann&resumable=1") as client:
        before = await asked(client, "hub.session")
        await asked(client, "hub.join", ["a", "b"])
        seen = await say(speaker, 1, to={"to": "group", "group": "a"})
        await client.record(containing=seen.encode())
    await until(lambda: node.log.sessions()[SUBJECTS.session(before["sessionId"])].status == "detached", "the detach")
    missed = [await say(speaker, n, to={"to": "groups", "groups": ["a", "b"]}) for n in (2, 3)]
    async with node.client(resume(before, seen)) as client:
        live = await say(speaker, 4)
        await client.record(containing=live.encode())
        assert said(client) == [[2, missed[0]], [3, missed[1]], [4, live]]
        after = await asked(client, "hub.session")
        assert (after["sessionId"], after["userId"], after["groups"]) == (before["sessionId"], "ann", ["a", "b"])
        assert (after["resumed"], after["resync"], "code" in after) == (True, None, False)
        assert after["resumeToken"] != before["resumeToken"]
        assert (await asked(client, "hub.leave", "a"))["groups"] == ["b"]


async def test_a_fresh_connection_takes_over_and_closes_its_own(node: Node, speaker: RawClient):
    async with node.client("?user=ann&resumable=1") as first, node.client("?user=ann&resumable=1") as second:
        old = await asked(first, "hub.session")
        position = await say(speaker, "one")
        await first.record(containing=position.encode())
        own = next(name for name, state in node.log.sessions().items() if state.connection not in _told(node, old))
        answer = await asked(second, "hub.resume", old["resumeToken"], old["cursor"])
        assert (answer["sessionId"], answer["resumed"]) == (old["sessionId"], True)
        await second.record(containing=position.encode())
        assert said(second) == [["one", position]]
        close = json.loads(await first.record(containing=b'{"type":7'))
        assert close["error"].startswith("replaced: ")
        assert not close.get("allowReconnect")
        await first.end()
        await until(lambda: node.log.sessions()[own].status == "closed", "its own session to be closed")
        assert node.log.sessions()[own].reason == "superseded"
        kinds = [type(event) for _, event in node.log.events(SUBJECTS.session(old["sessionId"]))]
        assert kinds == [session.Opened, session.Attached]  # being replaced is never logged
        live = await say(speaker, "two")
        await second.record(containing=live.encode())


def _told(node: Node, answer: dict[str, Any]) -> set[str]:
    speakers = {state.connection for state in node.log.sessions().values() if state.user == "speaker"}
    return speakers | {node.log.sessions()[SUBJECTS.session(SessionId(answer["sessionId"]))].connection}


async def test_an_old_token_is_refused_and_the_one_before_is_not(node: Node):
    async with node.client("?resumable=1") as client:
        first = await asked(client, "hub.session")
    async with node.client(resume(first)) as client:
        second = await asked(client, "hub.session")
    async with node.client(resume(first)) as client:  # the answer with the newer token may have been lost
        again = await asked(client, "hub.session")
        assert again["resumed"] is True
    async with node.client(resume(second)) as client:
        third = await asked(client, "hub.session")
        assert third["resumed"] is True
    async with node.client(resume(first)) as client:
        refused = await asked(client, "hub.session")
        assert (refused["resumed"], refused["resync"], refused["code"]) == (False, "lost", "token_stale")
        assert refused["sessionId"] != first["sessionId"]
    assert node.context.counters.resumes_refused == 1


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"resumeToken": "nonsense"}, "bad_token"),
        ({"cursor": "mema.0-99999"}, "invalid_position"),
        ({"cursor": "aaaa.0-1"}, "epoch_mismatch"),
        ({"cursor": "mema.7-1"}, "invalid_position"),
        ({"cursor": "x"}, "invalid_position"),
    ],
)
async def test_what_is_refused_gives_a_new_session_and_says_why(node: Node, change: dict[str, str], code: str):
    async with node.client("?resumable=1") as client:
        first = await asked(client, "hub.session")
    async with node.client(resume({**first, **change})) as client:
        answer = await asked(client, "hub.session")
        assert (answer["resumed"], answer["resync"], answer["code"]) == (False, "lost", code)
        error = await asked(client, "hub.resume", {**first, **change}["resumeToken"], {**first, **change}["cursor"])
        assert error.startswith(f"{code}: ")
        assert (await asked(client, "hub.session"))["sessionId"] == answer["sessionId"]


async def test_who_resumes_the_session_that_it_has_keeps_it(node: Node, speaker: RawClient):
    async with node.client("?resumable=1") as client:
        first = await asked(client, "hub.session")
    async with node.client(resume(first)) as client:
        mine = await asked(client, "hub.session")
        for token in (mine["resumeToken"], first["resumeToken"]):
            again = await asked(client, "hub.resume", token, mine["cursor"])
            assert (again["sessionId"], again["resumed"]) == (first["sessionId"], True)
        live = await say(speaker, "live")
        await client.record(containing=live.encode())
        assert said(client) == [["live", live]]
        kinds = [type(event) for _, event in node.log.events(SUBJECTS.session(SessionId(first["sessionId"])))]
        assert kinds == [session.Opened, session.Detached, session.Attached]
    async with node.client("?resumable=1") as fresh:
        early = await say(speaker, "early")
        token = (await asked(fresh, "hub.session"))["resumeToken"]
        await asked(fresh, "hub.resume", token, "mema.0-1")
        await fresh.record(containing=early.encode())
        assert said(fresh) == [["early", early]]


async def test_a_session_that_moves_between_connections_of_a_node_stays_known_there(node: Node):
    manager = await node.context.hubs.manager(HUB)
    async with node.client("?resumable=1") as old:
        first = await asked(old, "hub.session")
        await asked(old, "hub.join", "a")
        async with node.client(resume(first)) as new:
            await old.end()
            await until(lambda: len(node.context.coordinator) == 1 and not len(node.context.closings), "the old to go")
            assert manager.sessions.local_sessions() == (first["sessionId"],)
            assert manager.groups.local_members("a") == (first["sessionId"],)
            assert await asked(new, "hub.groups") == ["a"]
    await node.empty()


async def test_what_was_missed_comes_even_if_the_answer_fails(node: Node, speaker: RawClient, monkeypatch):
    async with node.client("?resumable=1") as client:
        first = await asked(client, "hub.session")
    missed = await say(speaker, "missed")

    async def broken(_caller: object) -> bytes:
        raise LogUnavailable("no answer")

    async with node.client("?resumable=1") as client:
        with monkeypatch.context() as patched:
            patched.setattr(table, "_session_answer", broken)
            error = await asked(client, "hub.resume", first["resumeToken"], first["cursor"])
            assert error.startswith("log_unavailable: ")
        await client.record(containing=missed.encode())
        answer = await asked(client, "hub.resume", first["resumeToken"], first["cursor"])
        assert (answer["sessionId"], answer["resumed"]) == (first["sessionId"], True)
        assert said(client) == [["missed", missed]]


async def test_a_cursor_ahead_of_the_log_leaves_the_session_waiting(node: Node):
    async with node.client("?resumable=1") as client:
        first = await asked(client, "hub.session")
    subject = SUBJECTS.session(SessionId(first["sessionId"]))
    await until(lambda: node.log.sessions()[subject].status == "detached", "the detach")
    async with node.client(resume(first, "mema.0-99999")) as client:
        assert (await asked(client, "hub.session"))["code"] == "invalid_position"
        await until(lambda: node.log.sessions()[subject].status == "detached", "it to wait again")
    async with node.client(resume(first)) as client:
        assert (await asked(client, "hub.session"))["sessionId"] == first["sessionId"]
    await node.empty()


async def test_a_log_that_goes_away_behind_the_attached_leaves_the_session_waiting(node: Node, monkeypatch):
    async with node.client("?resumable=1") as client:
        first = await asked(client, "hub.session")
    subject = SUBJECTS.session(SessionId(first["sessionId"]))

    async def away(_partition: int) -> int:
        raise LogUnavailable("no answer")

    with monkeypatch.context() as patched:
        patched.setattr(node.log, "first_sequence", away)
        async with node.client(resume(first), handshake=None) as client:
            client.send(HANDSHAKE)
            await client.end()
        await until(lambda: node.log.sessions()[subject].status == "detached", "it to wait again")
        assert [type(event) for _, event in node.log.events(subject)][-2:] == [session.Attached, session.Detached]
    await node.empty()


async def test_a_token_is_for_its_user(node: Node):
    async with node.client("?user=ann&resumable=1") as client:
        first = await asked(client, "hub.session")
    async with node.client(resume(first, user="bob")) as client:
        assert (await asked(client, "hub.session"))["code"] == "token_user_mismatch"
    async with node.client(resume(first)) as client:
        assert (await asked(client, "hub.session"))["userId"] == "ann"


async def test_a_close_ends_a_resumable_session_too(node: Node):
    async with node.client("?resumable=1") as client:
        first = await asked(client, "hub.session")
        client.send(b'{"type":7}\x1e')
        await client.end()
    assert await node.closed_as(first["sessionId"]) == "client"
    async with node.client(resume(first)) as client:
        assert (await asked(client, "hub.session"))["code"] == "session_closed"


async def test_what_the_log_no_longer_has_is_said_to_be_lost(node: Node, speaker: RawClient):
    async with node.client("?resumable=1") as client:
        first = await asked(client, "hub.session")
    await until(lambda: node.log.sessions()[SUBJECTS.session(first["sessionId"])].status == "detached", "the detach")
    for number in range(3):
        await say(speaker, number)
    node.log.forget(0, node.log._partitions[0].last)
    subject = SUBJECTS.session(SessionId(first["sessionId"]))
    state = session.State(status="detached", resumable=True, generation=1, opened=2)
    carried = session.Carried(after=state)
    node.log.store(subject, node.context.author.write(carried, actor="system:sweeper"))
    async with node.client(resume(first)) as client:
        answer = await asked(client, "hub.session")
        assert (answer["resumed"], answer["resync"]) == (True, "lost")
        live = await say(speaker, "live")
        await client.record(containing=live.encode())
        assert said(client) == [["live", live]]


async def test_who_is_not_resumable_cannot_resume(node: Node):
    async with node.client("?resumable=1") as client:
        first = await asked(client, "hub.session")
    async with node.client() as plain:
        assert (await asked(plain, "hub.session"))["resumeToken"] is None
        assert (await asked(plain, "hub.resume", first["resumeToken"], first["cursor"])).startswith("not_resumable: ")


async def test_nothing_is_left_of_who_came_and_went(node: Node):
    async with node.client("?resumable=1") as client:
        first = await asked(client, "hub.session")
        async with node.client("?resumable=1") as other:
            await asked(other, "hub.resume", first["resumeToken"], first["cursor"])
    await node.empty()


async def test_a_join_by_the_api_that_a_resume_meets_holds_nobody(node: Node, speaker: RawClient):
    async with node.client("?resumable=1") as client:
        before = await asked(client, "hub.session")
    subject = SUBJECTS.session(before["sessionId"])
    await until(lambda: node.log.sessions()[subject].status == "detached", "the detach")
    holds = node.dispatcher.counters.holds
    node.log.may_append.clear()
    async with node.client(resume(before), handshake=None) as client:
        client.send(HANDSHAKE)
        await until(lambda: node.log.waiting == 1, "the attach to wait")
        (event,) = session.decide(node.log.sessions()[subject], session.Join(("red",)))
        node.log.store(subject, node.context.author.write(event, actor="system:api"))
        missed = await say(speaker, 1, to={"to": "group", "group": "red"})
        node.log.may_append.set()
        await client.record(containing=b"{}")
        live = await say(speaker, 2, to={"to": "group", "group": "red"})
        await client.record(containing=live.encode())
        assert said(client) == [[1, missed], [2, live]]
    assert node.dispatcher.counters.holds == holds
