"""A conversation through two gateways, with the stock JavaScript client: what each one received, line by line, what
each call answered, what the API tells of it, and what the log holds. And what ``hublog probe`` says of all this.
"""

import asyncio
import json
import re
import sys
from collections.abc import Mapping
from typing import Any

import pytest

from tests.servers.processes import until
from tests.servers.questions import Api
from tests.servers.raw_signalr import HANDSHAKE, RawClient
from tests.servers.stock import CallError, StockClient, StockClients, fence
from tests.servers.up import Up

pytestmark = pytest.mark.asyncio(loop_scope="module")

Cast = Mapping[str, StockClient]
EVERYONE = ("ann", "phone", "bob", "cyd", "dan")
STEPS = ["connect", "join", "send", "send while away", "resume", "ask", "leave"]
MEMBERS = {"red": ("ann", "bob"), "blue": ("bob", "cyd", "phone"), "Grün & 緑": ("dan",)}


async def gather(clients: StockClients, gateways: tuple[str, str], hub: str) -> Cast:
    """Five clients of four users on two gateways, some with and some without negotiation, in three groups."""
    first, second = gateways
    cast = {
        "ann": await clients.start("ann", first, hub, user="ann", meta='{"device": "laptop"}'),
        "phone": await clients.start("phone", second, hub, user="ann", skip_negotiation=True),
        "bob": await clients.start("bob", second, hub, user="bob"),
        "cyd": await clients.start("cyd", first, hub, user="cyd", skip_negotiation=True),
        "dan": await clients.start("dan", second, hub),
    }
    for group, names in MEMBERS.items():
        for name in names:
            await cast[name].invoke("hub.join", group)
    await fence(cast["ann"], *cast.values())
    return cast


def sequence(position: str) -> int:
    return int(position.rpartition("-")[2])


# (who calls, the selector, who receives it), in order. Names stand for sessions; ann's phone is a session of user ann.
CONVERSATION: tuple[tuple[str, dict[str, Any], tuple[str, ...]], ...] = (
    ("ann", {"to": "all"}, EVERYONE),
    ("bob", {"to": "others"}, ("ann", "phone", "cyd", "dan")),
    ("cyd", {"to": "caller"}, ("cyd",)),
    ("dan", {"to": "allExcept", "sessions": ["ann", "bob", "nobody"]}, ("phone", "cyd", "dan")),
    ("ann", {"to": "client", "session": "bob"}, ("bob",)),
    ("bob", {"to": "client", "session": "bob"}, ("bob",)),
    ("phone", {"to": "clients", "sessions": ["ann", "dan", "ann", "nobody"]}, ("ann", "dan")),
    ("cyd", {"to": "clients", "sessions": ["phone"]}, ("phone",)),
    ("dan", {"to": "group", "group": "red"}, ("ann", "bob")),
    ("ann", {"to": "group", "group": "red", "except": ["ann"]}, ("bob",)),
    ("bob", {"to": "group", "group": "nobody is here"}, ()),
    ("cyd", {"to": "group", "group": "Grün & 緑"}, ("dan",)),
    ("ann", {"to": "groups", "groups": ["red", "blue"]}, ("ann", "bob", "cyd", "phone")),
    ("bob", {"to": "groups", "groups": ["red", "blue", "red"], "except": ["cyd", "ann"]}, ("bob", "phone")),
    ("cyd", {"to": "groups", "groups": ["Grün & 緑"]}, ("dan",)),
    ("bob", {"to": "groupExceptCaller", "group": "blue"}, ("cyd", "phone")),
    ("dan", {"to": "groupExceptCaller", "group": "blue"}, ("bob", "cyd", "phone")),
    ("bob", {"to": "groupsExceptCaller", "groups": ["red", "blue"]}, ("ann", "cyd", "phone")),
    ("bob", {"to": "user", "user": "ann"}, ("ann", "phone")),
    ("ann", {"to": "user", "user": "nobody"}, ()),
)


def with_sessions(selector: dict[str, Any], cast: Cast) -> dict[str, Any]:
    """The selector as it is sent: names become session ids."""

    def ident(name: str) -> str:
        return cast[name].session if name in cast else name

    sent = dict(selector)
    for field in ("sessions", "except"):
        if field in sent:
            sent[field] = [ident(name) for name in sent[field]]
    if "session" in sent:
        sent["session"] = ident(sent["session"])
    return sent


async def test_every_selector_reaches_whom_it_means_and_nobody_else(
    clients: StockClients, gateways: tuple[str, str], hub: str, api: Api
) -> None:
    cast = await gather(clients, gateways, hub)
    answers = []
    for number, (caller, selector, _) in enumerate(CONVERSATION):
        sent = with_sessions(selector, cast)
        answers.append((cast[caller], sent, await cast[caller].call(sent, number, f"line {number} — «ça va?»")))
    end = await fence(cast["dan"], *cast.values())

    # What each of them received, in order.
    for name, client in cast.items():
        expected = [number for number, (_, _, audience) in enumerate(CONVERSATION) if name in audience]
        assert client.said() == expected, name
        assert all(
            arguments[1] == f"line {arguments[0]} — «ça va?»" for method, arguments in client.heard if method == "say"
        )

    # What each call answered.
    ids = [answer["invocationId"] for _, _, answer in answers]
    positions = [answer["position"] for _, _, answer in answers]
    assert len(set(ids)) == len(ids)
    assert [answer["outcome"] for _, _, answer in answers] == [
        "sent" if selector["to"] == "client" else "accepted" for _, selector, _ in CONVERSATION
    ]
    assert positions == sorted(positions, key=sequence)
    assert all(re.fullmatch(r"[a-z2-7]{4}\.0-\d+", position) for position in positions)

    # What the API tells of the calls: the newest first.
    said = [item for item in await api.items("invocations", limit=7, min_position=end) if item["target"] == "say"]
    assert [
        (item["invocationId"], item["position"], item["caller"], item["selector"], item["arguments"]) for item in said
    ] == [
        (answer["invocationId"], answer["position"], caller.session, sent, [number, f"line {number} — «ça va?»"])
        for number, (caller, sent, answer) in reversed(list(enumerate(answers)))
    ]
    assert {item["status"] for item in said} == {"requested"}
    assert (await api.get(f"invocations/{ids[3]}"))["target"] == "say"
    assert await api.refused("GET", "invocations/no-such-call") == (404, "not_found")

    # What the log holds: ascending, each with its caller, arguments and position.
    events = await api.items("events", type="invocation.requested", limit=9)
    logged = [event for event in events if event["data"]["target"] == "say"]
    assert [
        (
            event["id"],
            event["position"],
            event["actor"],
            event["type"],
            event["data"]["caller"],
            event["data"]["arguments"],
        )
        for event in logged
    ] == [
        (
            answer["invocationId"],
            answer["position"],
            f"session:{caller.session}",
            "invocation.requested.v1",
            caller.session,
            [number, f"line {number} — «ça va?»"],
        )
        for number, (caller, _, answer) in enumerate(answers)
    ]
    assert logged[0]["subject"] == f"ev.0.{hub}.all"
    assert logged[8]["subject"] == f"ev.0.{hub}.g.red"
    assert logged[12]["subject"] == f"ev.0.{hub}.many"
    assert logged[18]["subject"] == f"ev.0.{hub}.u.ann"


async def test_the_api_knows_who_is_where_and_what_happened_to_each(
    clients: StockClients, gateways: tuple[str, str], hub: str, api: Api
) -> None:
    cast = await gather(clients, gateways, hub)
    joined = await cast["dan"].invoke("hub.join", ["red", "blue"])
    assert joined["groups"] == ["Grün & 緑", "blue", "red"]
    assert await cast["dan"].invoke("hub.join", "red") == joined, "already there: the position of the last event"
    left = await cast["dan"].invoke("hub.leave", ["blue", "never joined"])
    assert left["groups"] == ["Grün & 緑", "red"]
    assert await cast["dan"].invoke("hub.groups") == ["Grün & 緑", "red"]
    about = await cast["dan"].invoke("hub.session")
    assert about == {
        "sessionId": cast["dan"].session,
        "userId": None,
        "resumeToken": None,
        "cursor": about["cursor"],
        "groups": ["Grün & 緑", "red"],
        "resumed": False,
        "resync": None,
    }
    assert sequence(about["cursor"]) >= sequence(joined["position"])

    sessions = {item["sessionId"]: item for item in await api.items("sessions", limit=2, min_position=left["position"])}
    assert sessions.keys() == {client.session for client in cast.values()}
    assert list(sessions) == sorted(sessions), "ascending by id"
    assert {item["state"] for item in sessions.values()} == {"active"}
    ann = sessions[cast["ann"].session]
    assert (ann["userId"], ann["metadata"], ann["groups"]) == ("ann", {"device": "laptop"}, ["red"])
    assert ann["lastSeenAt"] >= ann["openedAt"]
    assert (await api.get(f"sessions/{cast['ann'].session}"))["node"] == ann["node"]

    # The nodes, and who is on which.
    nodes = [item for item in (await api.get("/v1/nodes"))["items"] if item["state"] == "started"]
    assert sorted(item["url"] for item in nodes) == sorted(gateways)
    first, second = sorted(nodes, key=lambda item: gateways.index(item["url"]))
    assert {item["sessionId"] for item in await api.items("sessions", node=first["node"])} == {
        cast[name].session for name in ("ann", "cyd")
    }
    assert {item["sessionId"] for item in await api.items("sessions", node=second["node"])} == {
        cast[name].session for name in ("phone", "bob", "dan")
    }
    assert {item["sessionId"] for item in await api.items("sessions", user="ann")} == {
        cast[name].session for name in ("ann", "phone")
    }

    # Groups and members.
    assert (await api.get("groups"))["items"] == [
        {"group": "Grün & 緑", "size": 1, "attached": 1},
        {"group": "blue", "size": 3, "attached": 3},
        {"group": "red", "size": 3, "attached": 3},
    ]
    members = await api.items("groups/red/members")
    assert {item["sessionId"]: item["userId"] for item in members} == {
        cast["ann"].session: "ann",
        cast["bob"].session: "bob",
        cast["dan"].session: None,
    }
    assert {item["joinedPosition"] for item in members if item["sessionId"] == cast["dan"].session} == {
        joined["position"]
    }

    # The history of one session, to its end.
    await cast["dan"].invoke("hub.leaveAll")
    await cast["dan"].stop()
    history = await api.closed_history(cast["dan"].session)
    assert [(event["type"], event["data"].get("groups")) for event in history] == [
        ("session.opened.v1", None),
        ("session.joined.v1", ["Grün & 緑"]),
        ("session.joined.v1", ["red", "blue"]),
        ("session.left.v1", {"blue": sequence(joined["position"])}),
        ("session.left.v1", {"Grün & 緑": sequence(history[1]["position"]), "red": sequence(joined["position"])}),
        ("session.closed.v1", None),
    ]
    assert history[-1]["data"]["reason"] == "client"
    assert [event["position"] for event in history] == sorted((e["position"] for e in history), key=sequence)
    gone = await api.get(f"sessions/{cast['dan'].session}")
    assert (gone["state"], gone["groups"]) == ("closed", [])
    assert (await api.get("sessions", state="active", limit=1000))["items"] == [
        item for item in await api.items("sessions") if item["sessionId"] != cast["dan"].session
    ]
    hubs = {item["hub"]: item for item in await api.items("/v1/hubs")}
    assert hub in hubs


async def test_members_receive_from_their_join_to_their_leave(
    clients: StockClients, gateways: tuple[str, str], hub: str
) -> None:
    first, second = gateways
    ann = await clients.start("ann", first, hub)
    bob = await clients.start("bob", second, hub)
    red, both = {"to": "group", "group": "red"}, {"to": "groups", "groups": ["red", "blue"]}
    await ann.call(red, "before anybody joined")
    for step in ("1", "2"):
        await bob.invoke("hub.join", ["red", "blue"])
        await ann.call(both, f"{step}: in both groups, once")
        await bob.invoke("hub.leave", "blue")
        await ann.call({"to": "group", "group": "blue"}, f"{step}: not in blue any more")
        await ann.call(both, f"{step}: still in red")
        await bob.invoke("hub.leaveAll")
        await ann.call(red, f"{step}: in none")
        await ann.call(both, f"{step}: in none of both")
    await fence(ann, ann, bob)
    assert ann.said() == []
    assert bob.said() == [
        "1: in both groups, once",
        "1: still in red",
        "2: in both groups, once",
        "2: still in red",
    ]


async def test_calls_in_a_burst_keep_their_order_and_are_each_stored_once(
    clients: StockClients, gateways: tuple[str, str], hub: str, api: Api
) -> None:
    ann = await clients.start("ann", gateways[0], hub, user="ann")
    bob = await clients.start("bob", gateways[1], hub, user="bob", skip_negotiation=True)
    await bob.invoke("hub.join", "red")
    selectors = (
        {"to": "all"},
        {"to": "group", "group": "red"},
        {"to": "client", "session": bob.session},
        {"to": "user", "user": "bob"},
        {"to": "clients", "sessions": [bob.session, ann.session]},
    )
    for number in range(100):  # none of them waits for an answer
        await ann.send("hub.invoke", selectors[number % 5], "say", [number])
    end = await fence(ann, ann, bob)
    assert bob.said() == list(range(100))
    assert ann.said() == [number for number in range(100) if number % 5 in {0, 4}]
    stored = await api.items("events", type="invocation.requested", min_position=end)
    assert [event["data"]["arguments"][0] for event in stored[:-1]] == list(range(100))


async def test_a_key_names_one_call(clients: StockClients, gateways: tuple[str, str], hub: str, api: Api) -> None:
    ann = await clients.start("ann", gateways[0], hub, user="ann")
    phone = await clients.start("phone", gateways[1], hub, user="ann")
    eve = await clients.start("eve", gateways[1], hub, user="eve")
    everyone = {"to": "all"}

    first = await ann.call(everyone, "paid", key="order-17", ttlMs=60_000)
    assert await ann.call(everyone, "paid", key="order-17", ttlMs=60_000) == first
    assert await phone.call(everyone, "paid", key="order-17", ttlMs=60_000) == first, "the key is the user's"
    other = await eve.call(everyone, "paid", key="order-17", ttlMs=60_000)
    assert other["invocationId"] != first["invocationId"], "another user's key is another key"
    for selector, arguments, options in (
        (everyone, ["paid twice"], {"ttlMs": 60_000}),
        (everyone, ["paid"], {}),
        ({"to": "user", "user": "ann"}, ["paid"], {"ttlMs": 60_000}),
    ):
        with pytest.raises(CallError, match=r"^key_reused: .*\. An idempotency key names one call"):
            await ann.call(selector, *arguments, key="order-17", **options)
    direct = {"to": "client", "session": eve.session}
    once = await ann.call(direct, "direct", key="direct")
    assert await phone.call(direct, "direct", key="direct") == once
    assert once["outcome"] == "sent"

    end = await fence(ann, ann, phone, eve)
    assert (ann.said(), phone.said(), eve.said()) == (["paid"] * 2, ["paid"] * 2, ["paid", "paid", "direct"])
    stored = await api.items("events", type="invocation.requested", min_position=end)
    assert [(event["id"], event["data"].get("ttlMs")) for event in stored[:-1]] == [
        (first["invocationId"], 60_000),
        (other["invocationId"], 60_000),
        (once["invocationId"], None),
    ]


BAD_CALLS: tuple[tuple[list[Any], str], ...] = (
    ([{"to": "all"}, "say", [1], {"ttlMs": 0}], "invalid_option"),
    ([{"to": "all"}, "say", [1], {"ttlMs": 8 * 86_400_000}], "invalid_option"),
    ([{"to": "all"}, "say", [1], {"ttl": 1}], "invalid_option"),
    ([{"to": "all"}, "say", [1], {"key": ""}], "invalid_option"),
    ([{"to": "all"}, "say", {"not": "an array"}], "invalid_arguments"),
    ([{"to": "all"}, "say"], "invalid_arguments"),
    ([{"to": "all"}, "", []], "invalid_name"),
    ([{"to": "all"}, 5, []], "invalid_arguments"),
    (["all", "say", []], "invalid_selector"),
    ([{"to": "everyone"}, "say", []], "invalid_selector"),
    ([{"to": "group"}, "say", []], "invalid_selector"),
    ([{"to": "group", "group": "red", "but": []}, "say", []], "invalid_selector"),
    ([{"to": "group", "group": "x" * 257}, "say", []], "invalid_name"),
    ([{"to": "clients", "sessions": [str(number) for number in range(1001)]}, "say", []], "too_many_targets"),
)


async def test_a_bad_call_is_refused_to_its_caller_and_the_conversation_goes_on(
    clients: StockClients, gateways: tuple[str, str], hub: str, api: Api
) -> None:
    ann = await clients.start("ann", gateways[0], hub)
    bob = await clients.start("bob", gateways[1], hub)
    for arguments, code in BAD_CALLS:
        with pytest.raises(CallError, match=rf"^{code}: .+\. .+"):
            await ann.invoke("hub.invoke", *arguments)
    with pytest.raises(CallError, match=r"^method_not_found: .*hub\.session"):
        await ann.invoke("hub.nothing")
    end = await fence(ann, ann, bob)
    assert (ann.said(), bob.said()) == ([], [])
    stored = await api.items("events", type="invocation.requested", min_position=end)
    assert [event["data"]["target"] for event in stored] == ["fence"]


async def test_who_is_not_there_is_an_outcome_and_no_error(
    clients: StockClients, gateways: tuple[str, str], hub: str, api: Api
) -> None:
    ann = await clients.start("ann", gateways[0], hub)
    bob = await clients.start("bob", gateways[1], hub)
    await bob.stop()
    await api.closed_history(bob.session)
    for session in (bob.session, "A" * 22, "no session", "", "\u0000", "x" * 5_000):
        answer = await ann.call({"to": "client", "session": session}, "hello")
        assert (answer["position"], answer["outcome"]) == (None, "not_found"), session
    for selector in ({"to": "clients", "sessions": []}, {"to": "groups", "groups": []}):
        answer = await ann.call(selector, "hello")
        assert (answer["position"], answer["outcome"]) == (None, "accepted"), selector
    end = await fence(ann, ann)
    stored = await api.items("events", type="invocation.requested", min_position=end)
    assert [event["data"]["target"] for event in stored] == ["fence"], "nothing was appended"


ODD = (
    '[ 1 ,\t"a\\u0062\\/c" , 1.50e+02,{"z":1 , "a" :[ ] ,"z":2}, "ünïcödé 🦉 \\ud83e\\udd89" ,12345678901234567890123 ]'
)


async def test_arguments_stay_byte_for_byte_from_socket_to_socket_api_and_log(
    clients: StockClients, gateways: tuple[str, str], hub: str, api: Api
) -> None:
    stock = await clients.start("stock", gateways[0], hub)
    async with RawClient(gateways[0], hub) as sender, RawClient(gateways[1], hub) as receiver:
        answer = await sender.call("hub.invoke", b'[{"to":"all"},"say",' + ODD.encode() + b"]")
        assert await receiver.record(containing=b'"target":"say"') == (
            b'{"type":1,"target":"say","arguments":' + ODD.encode() + b"}"
        )
    await stock.hears("say", *json.loads(ODD, parse_int=float))
    position = answer["result"]["position"]
    for path in (f"invocations/{answer['result']['invocationId']}", "invocations", "events"):
        status, body = await api.raw("GET", path, min_position=position)
        assert status == 200
        assert b'"arguments":' + ODD.encode() in body, path

    # By the API, the same.
    sent = b'{"selector": {"to": "all"}, "target": "say", "arguments": ' + ODD.encode() + b"}"
    async with RawClient(gateways[1], hub) as receiver:
        status, body = await api.raw("POST", "invocations", sent, user="root")
        assert status == 200, body
        assert await receiver.record(containing=b'"target":"say"') == (
            b'{"type":1,"target":"say","arguments":' + ODD.encode() + b"}"
        )
    position = json.loads(body)["position"]
    last = (await api.items("events", type="invocation.requested", min_position=position))[-1]
    assert (last["position"], last["actor"]) == (position, "user:root")
    assert b'"arguments":' + ODD.encode() in (await api.raw("GET", f"invocations/{last['id']}"))[1]


async def test_messages_may_share_a_frame_and_be_split_over_several(gateways: tuple[str, str], hub: str) -> None:
    def call(number: int) -> bytes:
        arguments = b'[{"to":"caller"},"say",[%d]]' % number
        return b'{"type":1,"invocationId":"%d","target":"hub.invoke","arguments":%s}\x1e' % (number, arguments)

    async with RawClient(gateways[0], hub, handshake=None) as client:
        client.send(HANDSHAKE + call(1) + call(2) + call(3)[:40])
        client.send(call(3)[40:50])
        client.send(b"")
        client.send(call(3)[50:] + b'{"type":6}\x1e' + call(4))
        client.send(call(5)[:-1])
        client.send(call(5)[-1:])
        await client.record(containing=b'"arguments":[5]')
        await client.record(containing=b'{"type":3,"invocationId":"5",')
        assert sum(b'"type":3' in record for record in client.records) == 5
        assert client.records[0] == b"{}"
        heard = [json.loads(record)["arguments"] for record in client.records if b'"target":"say"' in record]
        assert heard == [[1], [2], [3], [4], [5]]


async def test_the_api_calls_clients_too(clients: StockClients, gateways: tuple[str, str], hub: str, api: Api) -> None:
    cast = await gather(clients, gateways, hub)
    everyone = {client.session for client in cast.values()}
    steps: list[tuple[dict[str, Any], tuple[str, ...], str]] = [
        ({"to": "all"}, EVERYONE, "accepted"),
        ({"to": "allExcept", "sessions": ["ann"]}, ("phone", "bob", "cyd", "dan"), "accepted"),
        ({"to": "client", "session": "dan"}, ("dan",), "sent"),
        ({"to": "client", "session": "nobody"}, (), "not_found"),
        ({"to": "clients", "sessions": ["ann", "dan"]}, ("ann", "dan"), "accepted"),
        ({"to": "group", "group": "blue", "except": ["bob"]}, ("cyd", "phone"), "accepted"),
        ({"to": "groups", "groups": ["red", "blue"]}, ("ann", "bob", "cyd", "phone"), "accepted"),
        ({"to": "user", "user": "ann"}, ("ann", "phone"), "accepted"),
    ]
    for number, (selector, _, outcome) in enumerate(steps):
        body = {"selector": with_sessions(selector, cast), "target": "say", "arguments": [number]}
        answer = await api.call("POST", "invocations", body)
        assert answer["outcome"] == outcome, selector
    await fence(cast["ann"], *cast.values())
    for name, client in cast.items():
        assert client.said() == [number for number, (_, audience, _) in enumerate(steps) if name in audience], name

    for selector in ({"to": "caller"}, {"to": "others"}, {"to": "groupExceptCaller", "group": "red"}):
        body = json.dumps({"selector": selector, "target": "say", "arguments": []}).encode()
        assert await api.refused("POST", "invocations", body) == (400, "invalid_selector"), selector
    assert {item["sessionId"] for item in await api.items("sessions", state="active")} == everyone


async def test_members_are_put_in_and_taken_out_by_the_api_on_the_node_that_has_them(
    clients: StockClients, gateways: tuple[str, str], hub: str, api: Api
) -> None:
    """Also into a group that is new to that node, with a call right behind the answer."""
    ann = await clients.start("ann", gateways[0], hub)
    bob = await clients.start("bob", gateways[1], hub)
    expected = []
    for number in range(10):
        group = f"new-{number}"
        member = f"groups/{group}/members/{bob.session}"
        await ann.call({"to": "group", "group": group}, f"{group}: before")
        put = await api.call("PUT", member)
        await ann.call({"to": "group", "group": group}, f"{group}: behind the answer")
        await api.call("POST", "invocations", call_on(group, f"{group}: by the API"))
        assert await api.call("PUT", member) == put, "there already"
        expected += [f"{group}: behind the answer", f"{group}: by the API"]
        if number % 2:
            removed = await api.call("DELETE", member)
            await ann.call({"to": "group", "group": group}, f"{group}: after")
            assert await api.call("DELETE", member) == removed, "out already"
    end = await fence(ann, ann, bob)
    assert bob.said() == expected
    remaining = [f"new-{number}" for number in range(0, 10, 2)]
    assert await bob.invoke("hub.groups") == remaining
    assert [item["group"] for item in await api.items("groups", min_position=end)] == remaining
    assert await api.refused("PUT", f"groups/red/members/{'A' * 22}") == (404, "session_not_found")


def call_on(group: str, *arguments: Any) -> dict[str, Any]:
    return {"selector": {"to": "group", "group": group}, "target": "say", "arguments": arguments}


async def test_who_is_kicked_by_the_api_is_told_and_closed(
    clients: StockClients, gateways: tuple[str, str], hub: str, api: Api
) -> None:
    ann = await clients.start("ann", gateways[0], hub)
    bob = await clients.start("bob", gateways[1], hub, retry_ms=(0, 0))
    await bob.invoke("hub.join", "red")
    kicked = await api.call("DELETE", f"sessions/{bob.session}", user="root")
    error = await bob.meets("closed")
    assert error is not None
    assert "kicked: the session was closed" in error
    assert [event for event, _ in bob.events] == ["closed"], "no reconnecting: the Close does not allow it"
    assert await api.call("DELETE", f"sessions/{bob.session}") == kicked, "closed already"
    assert (await ann.call({"to": "client", "session": bob.session}, "hello"))["outcome"] == "not_found"
    history = await api.items(f"sessions/{bob.session}/history", min_position=kicked["position"])
    assert [(event["type"], event["actor"]) for event in history][-1] == ("session.closed.v1", "user:root")
    assert (history[-1]["data"]["reason"], history[-1]["position"]) == ("kicked", kicked["position"])
    assert (await api.get("groups"))["items"] == []
    assert await api.refused("PUT", f"groups/red/members/{bob.session}") == (410, "session_closed")
    assert await api.refused("DELETE", f"sessions/{'A' * 22}") == (404, "session_not_found")
    await fence(ann, ann)


async def test_a_stock_client_resumes_where_it_was(clients: StockClients, gateways: tuple[str, str], hub: str) -> None:
    ann = await clients.start("ann", gateways[0], hub, user="ann")
    with pytest.raises(CallError, match=r"^not_resumable: "):
        await ann.invoke("hub.resume", "token", "k7qd.0-1")
    bob = await clients.start("bob", gateways[0], hub, user="bob", resumable="1")
    first = await bob.invoke("hub.session")
    said = (await ann.call({"to": "user", "user": "bob"}, "one"))["position"]
    await bob.hears("say", "one", said)
    # Another connection, on the other node, takes over: it has not seen the message.
    heir = await clients.start("heir", gateways[1], hub, skip_negotiation=True, user="bob", resumable="1")
    answer = await heir.invoke("hub.resume", first["resumeToken"], first["cursor"])
    assert (answer["sessionId"], answer["resumed"], answer["resync"]) == (first["sessionId"], True, None)
    await heir.hears("say", "one", said)
    assert "replaced: " in (await bob.meets("closed") or "")
    assert (await ann.call({"to": "client", "session": first["sessionId"]}, "two"))["outcome"] == "sent"
    await until(lambda: heir.said() == ["one", "two"], what="both, once")
    await fence(ann, ann)


async def probe(*arguments: str) -> tuple[int, dict[str, Any]]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "service", "probe", "--json", "--timeout", "20", *arguments),
        stdout=asyncio.subprocess.PIPE,
    )
    written, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, json.loads(written)


async def test_the_probe_succeeds_on_a_sound_install(served: Up, gateways: tuple[str, str], hub: str) -> None:
    api = served.entry("api").url or ""
    code, report = await probe("--gateway", gateways[0], "--gateway", gateways[1], "--api", api, "--hub", hub)
    assert (code, report["failed"], report["why"]) == (0, None, None)
    assert [step["name"] for step in report["steps"]] == STEPS
    found = {step["name"]: step["found"] for step in report["steps"]}
    assert found["resume"].startswith(f"on {gateways[1]}, with what was missed at ")
    assert found["leave"] == "the session is closed"


async def test_the_probe_names_the_step_that_fails(served: Up, gateways: tuple[str, str], hub: str) -> None:
    api = served.entry("api").url or ""
    (code, swapped), (_, alone) = await asyncio.gather(
        probe("--gateway", api, "--api", api, "--hub", hub),
        probe("--gateway", gateways[0], "--api", "http://127.0.0.1:9", "--hub", hub),
    )
    assert (code, swapped["failed"]) == (1, "connect")
    assert swapped["why"].startswith("negotiate answered 404")
    assert alone["failed"] == "send while away"
    assert [step["name"] for step in alone["steps"]] == STEPS[:3]
