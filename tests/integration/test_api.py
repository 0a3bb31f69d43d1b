"""The API on a real log and real read models: what was commanded is what is answered."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import quote

import msgspec
import pytest
import structlog

from events.ids import HubName, Position, SessionId, parse_position
from projections.read import ReadModel
from projections.runner import Projector
from service.api import context
from service.api.app import make_app
from service.log.author import Author
from service.log.jetstream import JetStreamLog, jetstream_log, migrate_log
from service.sessions.hubs import Hubs
from service.sessions.manager import session_manager
from service.sessions.registry import NewSession
from tests.servers.api import Answer, Raw, is_problem, serving
from tests.servers.nats import MakeNats
from tests.servers.processes import until

HUB = HubName("chat")
RENEWED_US = 4_103_784_000_000_000  # 2100-01-16T12:00:00Z
ODD = [
    "a/b",
    "..",
    " ",
    "lobby",
    "%2F",
    "👋🏽 room",
    "ünï",
    "'; DROP TABLE groups; --",
    "x" * 256,
    "{}",
    '"',
    "\\",
    "a,b",
    "NULL",
]


class World:
    """One hub behind an API: real log, real database, a projector."""

    def __init__(self, api: Raw, log: JetStreamLog, hubs: Hubs, reads: ReadModel) -> None:
        self.api, self.log, self.hubs, self.reads = api, log, hubs, reads

    async def open(self, name: str, *, user: str | None = None, hub: HubName = HUB, **more: Any) -> SessionId:
        manager = await self.hubs.manager(hub)
        new = NewSession(SessionId(name), f"c-{name}", "node-0", "inc-0", user, **more)
        assert await manager.sessions.register(new)
        return new.session_id

    async def put(self, path: str, **query: str) -> Answer:
        return await self.request("PUT", path, **query)

    async def request(self, method: str, path: str, body: Any = None, **query: str) -> Answer:
        target = path + (
            "?" + "&".join(f"{name}={quote(value, safe='')}" for name, value in query.items()) if query else ""
        )
        raw = body if isinstance(body, bytes) else b"" if body is None else msgspec.json.encode(body)
        return await self.api.request(method, target, raw)

    async def up_to_date(self) -> str:
        return str(Position(self.log.epoch, 0, await self.log.last_sequence(0)))

    async def get(self, path: str, **query: str) -> Any:
        """The answer to a question, once everything commanded so far is in it."""
        answer = await self.request("GET", path, min_position=await self.up_to_date(), **query)
        assert answer.status == 200, answer.body
        return answer.json

    async def all(self, path: str, limit: int, **query: str) -> list[Any]:
        """Every item of a list, page by page."""
        items: list[Any] = []
        page = await self.get(path, limit=str(limit), **query)
        while True:
            assert len(page["items"]) <= limit
            items += page["items"]
            if page["next"] is None:
                return items
            page = await self.get(path, limit=str(limit), after=page["next"], **query)


@contextlib.asynccontextmanager
async def a_world(nats_url: str, dsn: str, partitions: int = 1) -> AsyncIterator[World]:
    await migrate_log(nats_url, random=b"abc", partitions=partitions)
    log = await jetstream_log(nats_url, name="test api", partitions=partitions)
    hubs = Hubs(log, lambda hub: session_manager(hub, log, author=Author(), ttl_ms_max=3_600_000))
    reads = ReadModel(dsn, partitions)
    projectors = [Projector(dsn, log, partition) for partition in range(partitions)]
    projecting = [asyncio.create_task(projector.run()) for projector in projectors]
    try:
        async with serving(make_app(reads, hubs, {"inc-0": RENEWED_US}.get)) as api:
            await until(lambda: all(projector.checkpoint for projector in projectors), what="checkpoints")
            yield World(api, log, hubs, reads)
    finally:
        for task in projecting:
            task.cancel()
        await asyncio.gather(*projecting, return_exceptions=True)
        await hubs.shutdown()
        await reads.close()
        await log.close()


@pytest.fixture
async def world(clean_nats: Any, database: str) -> AsyncIterator[World]:
    async with a_world(clean_nats.url, database) as world:
        yield world


async def test_an_empty_hub_is_empty_and_says_as_of_when(world: World):
    for path in ("sessions", "groups", "groups/lobby/members", "invocations", "events"):
        page = (await world.api.get(f"/v1/hubs/chat/{path}")).json
        assert page["items"] == []
        assert page["next"] is None
        assert page["position"] == f"{world.log.epoch}.0-0"
        assert page["ageMs"] >= 0
    assert (await world.api.get("/v1/hubs")).json["items"] == []
    assert (await world.api.get("/v1/nodes")).json["items"] == []
    (projection,) = (await world.api.get("/v1/projections")).json["items"]
    assert (projection["partition"], projection["parked"]) == (0, 0)


async def test_a_session_is_answered_as_it_is(world: World):
    await world.open("s1", user="ann", metadata=msgspec.Raw(b'{"device": "phone",  "n":1.0}'))
    answer = await world.request("GET", "/v1/hubs/chat/sessions/s1", min_position=await world.up_to_date())
    session = answer.json
    assert set(session) == {
        "sessionId", "userId", "state", "node", "groups", "metadata", "openedAt", "lastSeenAt", "position",
    }  # fmt: skip
    assert (session["sessionId"], session["userId"], session["state"]) == ("s1", "ann", "active")
    assert (session["node"], session["groups"], session["position"]) == ("node-0", [], f"{world.log.epoch}.0-1")
    assert session["lastSeenAt"].startswith("2100-01-16T12:00:00")
    assert b'{"device": "phone",  "n":1.0}' in answer.body
    assert answer.headers["hublog-position"] == f"{world.log.epoch}.0-1"
    assert (await world.get("/v1/hubs/chat/sessions"))["items"] == [session]
    assert (await world.get("/v1/hubs"))["items"] == [
        {"hub": "chat", "active": 1, "detached": 0, "closed": 0, "position": f"{world.log.epoch}.0-1"}
    ]


async def test_members_come_and_go(world: World):
    await world.open("s1", user="ann")
    await world.open("s2")
    joined = await world.put("/v1/hubs/chat/groups/lobby/members/s1", user="root")
    assert joined.status == 200
    again = await world.put("/v1/hubs/chat/groups/lobby/members/s1")
    assert again.json == joined.json
    await world.put("/v1/hubs/chat/groups/lobby/members/s2")
    members = (await world.get("/v1/hubs/chat/groups/lobby/members"))["items"]
    assert [member["sessionId"] for member in members] == ["s1", "s2"]
    assert set(members[0]) == {"sessionId", "userId", "state", "joinedAt", "joinedPosition"}
    assert (members[0]["userId"], members[0]["joinedPosition"]) == ("ann", joined.json["position"])
    assert (await world.get("/v1/hubs/chat/groups"))["items"] == [{"group": "lobby", "size": 2, "attached": 2}]
    left = await world.request("DELETE", "/v1/hubs/chat/groups/lobby/members/s1")
    assert parse_position(left.json["position"]) > parse_position(joined.json["position"])
    assert (await world.request("DELETE", "/v1/hubs/chat/groups/lobby/members/s1")).json == left.json
    assert [one["sessionId"] for one in (await world.get("/v1/hubs/chat/groups/lobby/members"))["items"]] == ["s2"]
    history = (await world.get("/v1/hubs/chat/sessions/s1/history"))["items"]
    assert [event["type"] for event in history] == ["session.opened.v1", "session.joined.v1", "session.left.v1"]
    assert [event["actor"] for event in history] == ["session:s1", "user:root", "system:api"]
    assert history[1]["position"] == joined.json["position"]


async def test_kicking_closes_and_closed_stays_closed(world: World):
    await world.open("s1")
    await world.put("/v1/hubs/chat/groups/lobby/members/s1")
    kicked = await world.request("DELETE", "/v1/hubs/chat/sessions/s1", user="root")
    assert (kicked.status, kicked.json) == (200, {"position": await world.up_to_date()})
    assert (await world.request("DELETE", "/v1/hubs/chat/sessions/s1")).json == kicked.json
    session = await world.get("/v1/hubs/chat/sessions/s1")
    assert (session["state"], session["groups"]) == ("closed", [])
    assert (await world.get("/v1/hubs/chat/groups"))["items"] == []
    last = (await world.get("/v1/hubs/chat/sessions/s1/history"))["items"][-1]
    assert (last["type"], last["data"]["reason"], last["actor"]) == ("session.closed.v1", "kicked", "user:root")
    refused = await world.put("/v1/hubs/chat/groups/lobby/members/s1")
    assert (refused.status, refused.json["code"]) == (410, "session_closed")


ARGUMENTS = b'[1.0,  "\xc3\xa9\\u00e9\\u0000", {"b":1,"a":[ ]}, 12345678901234567890123, 1e400]'


async def test_an_invocation_is_found_with_its_arguments_byte_for_byte(world: World):
    await world.open("s1")
    body = b'{"selector":{"to":"group","group":"lobby"}, "target":"say", "arguments": %s , "ttlMs":60000}' % ARGUMENTS
    answer = await world.request("POST", "/v1/hubs/chat/invocations", body, user="ann")
    assert answer.status == 200, answer.body
    assert answer.json == {
        "invocationId": answer.json["invocationId"], "position": f"{world.log.epoch}.0-2", "outcome": "accepted",
    }  # fmt: skip
    path = f"/v1/hubs/chat/invocations/{answer.json['invocationId']}"
    found = await world.request("GET", path, min_position=answer.json["position"])
    assert b'"arguments":' + ARGUMENTS in found.body
    events = await world.request("GET", "/v1/hubs/chat/events", type="invocation.requested")
    assert b'"arguments":' + ARGUMENTS in events.body
    listed = await world.request("GET", "/v1/hubs/chat/invocations")
    assert b'"arguments":' + ARGUMENTS in listed.body

    invocation = msgspec.json.decode(found.body.replace(ARGUMENTS, b"[]"))
    assert set(invocation) == {
        "invocationId", "target", "arguments", "selector", "caller", "requestedAt", "position", "status",
    }  # fmt: skip
    assert (invocation["target"], invocation["selector"]) == ("say", {"to": "group", "group": "lobby"})
    assert (invocation["caller"], invocation["position"]) == ("user:ann", answer.json["position"])
    event = msgspec.json.decode(events.body.replace(ARGUMENTS, b"[]"))["items"][0]
    assert set(event) == {"id", "type", "at", "actor", "correlation", "causation", "data", "position", "subject"}
    assert (event["id"], event["subject"]) == (answer.json["invocationId"], "ev.0.chat.g.lobby")
    assert (event["actor"], event["data"]["ttlMs"]) == ("user:ann", 60_000)


def call(to: Any, **more: Any) -> dict[str, Any]:
    return {"selector": to if isinstance(to, dict) else {"to": to}, "target": "say", "arguments": ["hi"], **more}


async def test_a_command_is_logged_with_who_and_where(world: World):
    await world.open("s1")
    with structlog.testing.capture_logs() as lines:
        joined = await world.put("/v1/hubs/chat/groups/lobby/members/s1", user="root")
    (line,) = [line for line in lines if line["event"] == "api.command"]
    assert (line["hub"], line["group"], line["session"], line["user"]) == ("chat", "lobby", "s1", "root")
    assert (line["position"], line["status"], line["code"]) == (joined.json["position"], 200, None)


async def test_outcomes_and_keys(world: World):
    await world.open("s1")
    path = "/v1/hubs/chat/invocations"
    sent = await world.request("POST", path, call({"to": "client", "session": "s1"}))
    assert (sent.status, sent.json["outcome"]) == (200, "sent")
    for nobody in ("s9", "", "x" * 300, "a\0b"):
        lost = await world.request("POST", path, call({"to": "client", "session": nobody}))
        assert (lost.status, lost.json["outcome"], lost.json["position"]) == (200, "not_found", None)
    first = await world.request("POST", path, call("all", key="once"), user="ann")
    again = await world.request("POST", path, call("all", key="once"), user="ann")
    assert (first.status, again.json) == (200, first.json)
    other = await world.request("POST", path, call("all", key="once", target="other"), user="ann")
    assert (other.status, other.json["code"]) == (409, "key_reused")
    system = await world.request("POST", path, call("all", key="once"))
    assert system.json["invocationId"] != first.json["invocationId"]
    assert len((await world.get(path))["items"]) == 3


CANNOT_BE_MADE: list[tuple[Any, str]] = [
    (call("caller"), "invalid_selector"),
    (call("others"), "invalid_selector"),
    (call({"to": "groupExceptCaller", "group": "g"}), "invalid_selector"),
    (call({"to": "groupsExceptCaller", "groups": ["g", "h"]}), "invalid_selector"),
    (call("nobody"), "invalid_selector"),
    (call({"to": "group", "group": ""}), "invalid_name"),
    (call({"to": "group", "group": "x" * 257}), "invalid_name"),
    (call({"to": "user", "user": "a\0b"}), "invalid_name"),
    (call({"to": "clients", "sessions": [str(n) for n in range(1001)]}), "too_many_targets"),
    (call({"to": "groups", "groups": [str(n) for n in range(1001)]}), "too_many_targets"),
    (call("all", arguments={}), "invalid_arguments"),
    (call("all", arguments=None), "invalid_arguments"),
    (call("all", arguments="[]"), "invalid_arguments"),
    (call("all", target=""), "invalid_name"),
    (call("all", target="t" * 257), "invalid_name"),
    (call("all", key=""), "invalid_option"),
    (call("all", key="k" * 129), "invalid_option"),
    (call("all", key=7), "invalid_option"),
    (call("all", ttlMs=0), "invalid_option"),
    (call("all", ttlMs=-1), "invalid_option"),
    (call("all", ttlMs=3_600_001), "invalid_option"),
    (call("all", ttlMs="1"), "invalid_option"),
    (call("all", ttlMs=10**30), "invalid_option"),
    (call("all", caller="s1"), "invalid_body"),
    (b'{"selector":{"to":"all"},"target":"say","arguments":["\xff"]}', "invalid_body"),
    (b"", "invalid_body"),
]


async def test_calls_that_cannot_be_made(world: World):
    for body, code in CANNOT_BE_MADE:
        refused = await world.request("POST", "/v1/hubs/chat/invocations", body)
        assert is_problem(refused)
        assert (refused.status, refused.json["code"]) == (400, code), body
    assert await world.log.last_sequence(0) == 0


async def test_names_of_every_kind_are_groups_users_and_selectors(world: World):
    await world.open("s1", user=ODD[5])
    for name in ODD:
        path = f"/v1/hubs/chat/groups/{quote(name, safe='')}/members"
        assert (await world.put(f"{path}/s1", user=name)).status == 200, name
        assert [one["sessionId"] for one in (await world.get(path))["items"]] == ["s1"], name
        assert (
            await world.request("POST", "/v1/hubs/chat/invocations", call({"to": "group", "group": name}))
        ).status == 200
        assert [one["sessionId"] for one in (await world.get("/v1/hubs/chat/sessions", group=name))["items"]] == ["s1"]
    assert [one["group"] for one in await world.all("/v1/hubs/chat/groups", 3)] == sorted(ODD, key=str.encode)
    assert (await world.get("/v1/hubs/chat/sessions/s1"))["groups"] == sorted(ODD)
    assert len((await world.get("/v1/hubs/chat/sessions", user=ODD[5]))["items"]) == 1
    history = await world.all("/v1/hubs/chat/sessions/s1/history", 4)
    assert [event["actor"] for event in history[1:]] == [f"user:{name}" for name in ODD]


async def test_pages_follow_each_other(world: World):
    names = [f"s{number}" for number in range(7)]
    for name in names:
        await world.open(name, user="ann" if name < "s4" else "bob")
        await world.put(f"/v1/hubs/chat/groups/lobby/members/{name}")
    await world.request("DELETE", "/v1/hubs/chat/sessions/s6")
    for limit in (1, 3, 7, 1000):
        found = await world.all("/v1/hubs/chat/sessions", limit)
        assert [one["sessionId"] for one in found] == names
        assert [one["sessionId"] for one in await world.all("/v1/hubs/chat/groups/lobby/members", limit)] == names[:6]
        assert [one["sessionId"] for one in await world.all("/v1/hubs/chat/sessions", limit, user="ann")] == names[:4]
        assert [one["sessionId"] for one in await world.all("/v1/hubs/chat/sessions", limit, state="closed")] == ["s6"]
        both = await world.all(
            "/v1/hubs/chat/sessions", limit, user="bob", state="active", node="node-0", group="lobby"
        )
        assert [one["sessionId"] for one in both] == ["s4", "s5"]
        assert await world.all("/v1/hubs/chat/sessions", limit, node="node-9") == []
        events = await world.all("/v1/hubs/chat/events", limit)
        assert [parse_position(one["position"]).sequence for one in events] == list(range(1, 16))
    joined = await world.all("/v1/hubs/chat/events", 2, type="session.joined")
    assert [one["type"] for one in joined] == ["session.joined.v1"] * 7
    assert await world.all("/v1/hubs/chat/events", 2, type="session.joined.v1") == joined
    on_subject = await world.all("/v1/hubs/chat/events", 2, subject="ev.0.chat.s.s6.log")
    assert [one["type"] for one in on_subject] == ["session.opened.v1", "session.joined.v1", "session.closed.v1"]


async def test_invocations_descend(world: World):
    for number in range(5):
        await world.request("POST", "/v1/hubs/chat/invocations", call("all", target=f"t{number}"))
    found = await world.all("/v1/hubs/chat/invocations", 2)
    assert [one["target"] for one in found] == ["t4", "t3", "t2", "t1", "t0"]


async def test_hubs_do_not_see_each_other(world: World):
    await world.open("s1", hub=HubName("one"))
    await world.open("s2", hub=HubName("two"))
    assert [one["sessionId"] for one in (await world.get("/v1/hubs/one/sessions"))["items"]] == ["s1"]
    assert [one["hub"] for one in await world.all("/v1/hubs", 1)] == ["one", "two"]
    other = await world.request("GET", "/v1/hubs/two/sessions/s1", min_position=await world.up_to_date())
    assert (other.status, other.json["code"]) == (404, "session_not_found")
    assert len((await world.get("/v1/hubs/one/events"))["items"]) == 1


async def test_reading_what_is_not_there_yet(world: World, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(context, "WAIT_S", 0.2)
    await world.open("s1")
    ahead = str(Position(world.log.epoch, 0, 1_000))
    for path in ("/v1/hubs/chat/sessions", "/v1/hubs/chat/sessions/s1", "/v1/hubs", "/v1/nodes"):
        late = await world.request("GET", path, min_position=ahead)
        assert is_problem(late)
        assert (late.status, late.json["code"], late.json["retryable"]) == (409, "position_not_reached", True)
        assert late.json["details"]["reached"].startswith(f"{world.log.epoch}.0-")
        other = await world.request("GET", path, min_position="zzzz.0-1")
        assert (other.status, other.json["code"]) == (409, "epoch_mismatch")
        nowhere = await world.request("GET", path, min_position=f"{world.log.epoch}.7-1")
        assert (nowhere.status, nowhere.json["code"]) == (400, "invalid_position")
    for path in ("events", "invocations", "sessions/s1/history"):
        other = await world.request("GET", f"/v1/hubs/chat/{path}", after="zzzz.0-1")
        assert (other.status, other.json["code"]) == (409, "epoch_mismatch")


async def test_a_wait_ends_when_the_position_is_projected(world: World):
    await world.open("s1")
    waiting = asyncio.create_task(
        world.request("GET", "/v1/hubs/chat/sessions/s2", min_position=str(Position(world.log.epoch, 0, 2)))
    )
    await world.open("s2")
    assert (await waiting).json["sessionId"] == "s2"


REFUSED = [
    ("GET", "/v1/hubs/chat/sessions/nobody", 404, "session_not_found"),
    ("GET", "/v1/hubs/chat/sessions/nobody/history", 404, "session_not_found"),
    ("DELETE", "/v1/hubs/chat/sessions/nobody", 404, "session_not_found"),
    ("PUT", "/v1/hubs/chat/groups/g/members/nobody", 404, "session_not_found"),
    ("DELETE", "/v1/hubs/chat/groups/g/members/nobody", 404, "session_not_found"),
    ("PUT", "/v1/hubs/chat/groups/g/members/a%00b", 404, "session_not_found"),
    ("GET", "/v1/hubs/chat/invocations/nothing", 404, "not_found"),
    ("GET", "/v1/hubs/chat/sessions?limit=1001", 400, "limit_too_large"),
    ("GET", "/v1/hubs/chat/sessions?limit=0", 400, "invalid_query"),
    ("GET", "/v1/hubs/chat/sessions?limit=-1", 400, "invalid_query"),
    ("GET", "/v1/hubs/chat/sessions?state=open", 400, "invalid_query"),
    ("GET", "/v1/hubs/chat/sessions?state=null", 400, "invalid_query"),
    ("GET", "/v1/hubs/chat/sessions?nosuch=1", 400, "invalid_query"),
    ("GET", "/v1/hubs/chat/sessions?min_position=1", 400, "invalid_position"),
    ("GET", "/v1/hubs/chat/events?after=1", 400, "invalid_position"),
    ("GET", "/v1/hubs/chat/events?after=abcd.1-1", 400, "invalid_position"),
    ("GET", "/v1/hubs?after=%25", 400, "invalid_query"),
    ("GET", "/v1/hubs/Chat/sessions", 400, "invalid_name"),
    ("PUT", "/v1/hubs/chat/groups/g/members/s?user=", 400, "invalid_name"),
    ("POST", "/v1/hubs/chat/sessions", 405, "method_not_allowed"),
    ("GET", "/v1/hubs/chat", 404, "not_found"),
]


async def test_refusals(world: World):
    for method, path, status, code in REFUSED:
        refused = await world.api.request(method, path)
        assert is_problem(refused)
        assert (refused.status, refused.json["code"]) == (status, code), f"{method} {path}"
    assert await world.log.last_sequence(0) == 0


async def test_the_schema_is_served(world: World):
    document = (await world.api.get("/schema")).json
    assert document["openapi"] == "3.1.0"
    assert "/v1/hubs/{hub}/invocations" in document["paths"]


HOSTILE = [
    "", "0", "-1", "null", "true", "%00", "%ff", "%ED%A0%80", "%F0%9F%91%8B", "..", ".", "%2F", "a%2Fb", "x" * 300, "%",
    "9" * 40, "'", '%22', "%5C", "1e9", "\u0301", "%E2%80%AE", "abcd.0-1", "abcd.0-9223372036854775808", "%0A",
]  # fmt: skip


async def test_whatever_stands_in_a_path_or_query_is_answered_or_refused(world: World):
    await world.open("s1")
    paths = [
        "/v1/hubs/{}/sessions", "/v1/hubs/chat/sessions/{}", "/v1/hubs/chat/sessions/{}/history",
        "/v1/hubs/chat/groups/{}/members", "/v1/hubs/chat/invocations/{}", "/v1/{}",
    ]  # fmt: skip
    queries = {
        "/v1/hubs/chat/sessions": ["limit", "after", "state", "user", "group", "node", "{}"],
        "/v1/hubs/chat/events": ["after", "type", "subject"],
        "/v1/hubs/chat/invocations": ["after"],
        "/v1/hubs/chat/groups": ["after"],
        "/v1/hubs": ["after"],
        "/v1/nodes": ["after"],
    }
    targets = [path.format(value) for path in paths for value in HOSTILE]
    targets += [f"{path}?{name}={value}" for path, names in queries.items() for name in names for value in HOSTILE]
    commands = [("PUT", f"/v1/hubs/chat/groups/{value}/members/{value}") for value in HOSTILE]
    commands += [("DELETE", f"/v1/hubs/chat/groups/{value}/members/s1?user={value}") for value in HOSTILE]
    for method, target in [*(("GET", target) for target in targets), *commands]:
        answer = await world.api.request(method, target)
        assert answer.status < 500, f"{method} {target}: {answer.body!r}"
        if answer.status != 200:
            assert is_problem(answer), f"{method} {target}"
        json.loads(answer.body)


async def test_without_postgres_questions_wait_and_commands_go_on(world: World):
    nowhere = ReadModel("postgresql://nobody@127.0.0.1:1/none?connect_timeout=1", 1)
    try:
        async with serving(make_app(nowhere, world.hubs, {}.get)) as api:
            await world.open("s1")
            asked = await api.get("/v1/hubs/chat/sessions")
            assert is_problem(asked)
            assert (asked.status, asked.json["code"]) == (503, "read_model_unavailable")
            assert (await api.request("PUT", "/v1/hubs/chat/groups/g/members/s1")).status == 200
    finally:
        await nowhere.close()


async def test_without_nats_commands_are_refused_and_questions_go_on(fresh_nats: MakeNats, database: str):
    server = await fresh_nats()
    async with a_world(server.url, database) as world:
        await world.open("s1")
        session = await world.get("/v1/hubs/chat/sessions/s1")
        await server.kill()
        await until(lambda: not world.log.connected, what="the loss of NATS")
        for method, path, body in (
            ("PUT", "/v1/hubs/chat/groups/g/members/s1", None),
            ("DELETE", "/v1/hubs/chat/sessions/s1", None),
            ("POST", "/v1/hubs/chat/invocations", call("all")),
        ):
            refused = await world.request(method, path, body)
            assert is_problem(refused)
            assert (refused.status, refused.json["code"]) == (503, "log_unavailable"), path
            assert refused.headers["retry-after"] == "1"
        assert (await world.request("GET", "/v1/hubs/chat/sessions/s1")).json == session


async def test_several_partitions(clean_nats: Any, database: str):
    async with a_world(clean_nats.url, database, partitions=2) as world:
        hubs = [HubName(f"hub-{number}") for number in range(8)]
        for hub in hubs:
            await world.open("s1", hub=hub)
            joined = await world.put(f"/v1/hubs/{hub}/groups/lobby/members/s1")
            position = parse_position(joined.json["position"])
            assert position.partition == world.reads.partition(hub)
            members = await world.request("GET", f"/v1/hubs/{hub}/groups/lobby/members", min_position=str(position))
            assert [one["joinedPosition"] for one in members.json["items"]] == [str(position)]
            elsewhere = str(Position(position.epoch, 1 - position.partition, 0))
            refused = await world.request("GET", f"/v1/hubs/{hub}/sessions", min_position=elsewhere)
            assert (refused.status, refused.json["code"]) == (400, "invalid_position")
        assert {world.reads.partition(hub) for hub in hubs} == {0, 1}
        page = (await world.api.get("/v1/hubs?limit=5")).json
        assert page["position"] is None
        rest = (await world.request("GET", "/v1/hubs", after=page["next"])).json
        assert [one["hub"] for one in page["items"] + rest["items"]] == hubs
        assert [one["partition"] for one in (await world.api.get("/v1/projections")).json["items"]] == [0, 1]
