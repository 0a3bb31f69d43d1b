"""The calls of one connection: their order, how many are under way, and who is answered."""

import asyncio
import json
from collections.abc import Awaitable
from typing import Any

import pytest

from events import invocation
from events.errors import Internal
from service.gateway.calls import CALLS_AT_ONCE_MAX
from service.gateway.signalr.machine import Limits
from service.log.author import Author
from service.sessions.hubs import Factory
from service.sessions.manager import session_manager
from service.sessions.router import Answer, Call, LogInvocationRouter
from tests.servers.gateway import SUBJECTS, GatedLog, MakeNode, Node, until
from tests.servers.raw_signalr import RawClient

PING = b'{"type":6}\x1e'


def call(client: RawClient, ident: int | None, target: str, *arguments: object) -> None:
    """Send a call without waiting for its answer."""
    message: dict[str, object] = {"type": 1, "target": target, "arguments": arguments}
    if ident is not None:
        message["invocationId"] = f"c{ident}"
    client.send(json.dumps(message).encode() + b"\x1e")


def invoke(client: RawClient, ident: int | None, to: dict[str, object], *arguments: object) -> None:
    call(client, ident, "hub.invoke", to, "say", list(arguments))


def answers(client: RawClient) -> list[dict[str, Any]]:
    return [found for record in client.records if (found := json.loads(record)).get("type") == 3]


def said(node: Node) -> list[object]:
    """The arguments of every call in the log, in its order."""
    events = [json.loads(found.payload) for found in node.log._partitions[0].events]
    return [event["data"]["arguments"][0] for event in events if event["type"] == "invocation.requested.v1"]


async def test_consecutive_invokes_do_not_wait_for_each_other(node: Node):
    async with node.client() as client:
        node.log.may_answer.clear()
        for number in range(10):
            invoke(client, number, {"to": "others"}, number)
        await until(lambda: node.log.waiting == 10, "all calls to be on their way")
        assert said(node) == list(range(10))
        assert answers(client) == []
        node.log.may_answer.set()
        await until(lambda: len(answers(client)) == 10, "every answer")
        assert [answer["invocationId"] for answer in answers(client)] == [f"c{number}" for number in range(10)]
        assert {answer["result"]["outcome"] for answer in answers(client)} == {"accepted"}


async def test_any_other_method_waits_for_the_invokes_before_it_and_holds_those_behind(node: Node):
    async with node.client() as client:
        session = await node.session_of(client)
        node.log.may_answer.clear()
        invoke(client, 1, {"to": "all"}, 1)
        call(client, 2, "hub.join", "red")
        invoke(client, 3, {"to": "group", "group": "red"}, 2)
        await until(lambda: node.log.waiting == 1, "the first call to wait for its answer")
        await asyncio.sleep(0.02)
        assert said(node) == [1]
        assert len(node.log.events(SUBJECTS.session(session))) == 1, "not joined yet"
        node.log.may_answer.set()
        await until(lambda: len(answers(client)) == 4, "every answer")
        assert [answer["invocationId"] for answer in answers(client)[1:]] == ["c1", "c2", "c3"]
        await client.record(containing=b'"arguments":[2]')


async def test_looking_up_a_client_keeps_the_order_of_the_calls(node: Node):
    async with node.client() as ann, node.client() as bob:
        session = await node.session_of(bob)
        node.log.may_read.clear()
        invoke(ann, 1, {"to": "client", "session": session}, 1)
        invoke(ann, 2, {"to": "all"}, 2)
        invoke(ann, 3, {"to": "client", "session": "nobody"}, 3)
        invoke(ann, 4, {"to": "client", "session": session}, 4)
        await until(lambda: node.log.waiting == 1, "the first look-up")
        assert said(node) == []
        node.log.may_read.set()
        await until(lambda: len(answers(ann)) == 4, "every answer")
        assert said(node) == [1, 2, 4]
        outcomes = {answer["invocationId"]: answer["result"] for answer in answers(ann)}
        assert [outcomes[f"c{n}"]["outcome"] for n in (1, 2, 3, 4)] == ["sent", "accepted", "not_found", "sent"]
        assert outcomes["c3"]["position"] is None
        await bob.record(containing=b'"arguments":[4]')
        assert [json.loads(r)["arguments"] for r in bob.records if b'"say"' in r] == [[1], [2], [4]]


async def test_a_bound_of_calls_is_on_its_way_and_no_more_is_read(node: Node):
    more = 40
    async with node.client() as client:
        node.log.may_answer.clear()
        for number in range(CALLS_AT_ONCE_MAX + more):
            invoke(client, number, {"to": "others"}, number)
        await until(lambda: node.log.waiting == CALLS_AT_ONCE_MAX, "the bound to be reached")
        await asyncio.sleep(0.02)
        assert len(said(node)) == CALLS_AT_ONCE_MAX
        node.log.may_answer.set()
        await until(lambda: len(answers(client)) == CALLS_AT_ONCE_MAX + more, "every answer")
        assert said(node) == list(range(CALLS_AT_ONCE_MAX + more))


async def test_who_waits_for_the_log_is_not_taken_for_silent(make_node: MakeNode):
    node = await make_node(limits=Limits(silence_s=0.15))
    async with node.client() as client:
        node.log.may_answer.clear()
        invoke(client, 1, {"to": "others"}, 1)
        call(client, 2, "hub.groups")
        await until(lambda: node.log.waiting == 1, "the call to wait for its answer")
        for _ in range(8):
            client.send(PING)
            await asyncio.sleep(0.05)
        node.log.may_answer.set()
        await until(lambda: len(answers(client)) == 2, "both answers")


async def test_only_calls_with_an_id_are_answered(node: Node):
    async with node.client() as client:
        invoke(client, None, {"to": "others"}, 1)
        call(client, None, "hub.join", "red")
        call(client, None, "hub.nothing")
        invoke(client, None, {"to": "nobody-knows"}, 1)
        call(client, None, "hub.join", 5)
        call(client, 9, "hub.groups")
        await until(lambda: bool(answers(client)), "the one answer")
        assert answers(client) == [{"type": 3, "invocationId": "c9", "result": ["red"]}]
        assert node.context.counters.failed_calls == 3


async def test_each_refused_call_says_why_and_the_next_one_works(node: Node):
    async with node.client() as client:
        refused = {
            "method_not_found": ("hub.nothing",),
            "invalid_selector": ("hub.invoke", {"to": "moon"}, "say", []),
            "invalid_arguments": ("hub.invoke", {"to": "all"}, "say", {}),
            "invalid_option": ("hub.invoke", {"to": "all"}, "say", [], {"ttl": 1}),
            "invalid_name": ("hub.join", "x" * 257),
            "too_many_groups": ("hub.join", [f"g{number}" for number in range(129)]),
            "too_many_targets": ("hub.invoke", {"to": "clients", "sessions": [str(n) for n in range(1001)]}, "say", []),
            "not_resumable": ("hub.resume", "token", "cursor"),
        }
        for number, (code, arguments) in enumerate(refused.items()):
            call(client, number, *arguments)
            found = json.loads(await client.record(containing=b'"invocationId":"c%d"' % number))
            assert found["error"].startswith(f"{code}: "), found
        assert (await client.call("hub.groups", b"[]"))["result"] == []
    assert said(node) == []


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("hub.join", "a", "b"), "hub.join takes (group | groups): "),
        (("hub.leave",), "hub.leave takes (group | groups): "),
        (("hub.groups", 1), "hub.groups takes nothing: "),
        (("hub.leaveAll", 1), "hub.leaveAll takes nothing: "),
        (("hub.session", 1), "hub.session takes nothing: "),
        (("hub.resume", "token"), "hub.resume takes (token, cursor): "),
        (("hub.invoke", {"to": "all"}, "say"), "hub.invoke takes (selector, target, arguments, options?): "),
        (
            ("hub.invoke", {"to": "all"}, "say", "as", "elsewhere"),
            "hub.invoke takes (selector, target, arguments, options?): the third is no array; ",
        ),
    ],
)
async def test_a_call_that_does_not_fit_is_told_what_the_method_takes(
    node: Node, arguments: tuple[Any, ...], told: str
):
    async with node.client() as client:
        call(client, 1, *arguments)
        found = json.loads(await client.record(containing=b'"invocationId":"c1"'))
        assert found["error"].startswith(f"invalid_arguments: {told}")


async def test_a_join_that_is_too_large_hears_nothing_new(node: Node):
    async with node.client() as client:
        await client.call("hub.join", json.dumps([[f"g{number}" for number in range(100)]]).encode())
        subscribed = len(node.log.subscriptions)
        refused = await client.call("hub.join", json.dumps([[f"h{number}" for number in range(29)]]).encode())
        assert refused["error"].startswith("too_many_groups: ")
        assert len(node.log.subscriptions) == subscribed
        assert "error" not in await client.call("hub.join", json.dumps([[f"h{n}" for n in range(28)]]).encode())


async def _fail_later() -> None:
    await asyncio.sleep(0)
    raise ZeroDivisionError


@pytest.mark.parametrize("when", ["at once", "later", "after its answer"])
async def test_a_defect_in_a_call_is_said_and_does_not_hold_up_the_next(make_node: MakeNode, when: str):
    class Broken(LogInvocationRouter):
        def submit(self, call: Call, answer: Answer) -> Awaitable[None] | None:
            if when == "at once":
                raise ZeroDivisionError
            if when == "after its answer":
                answer(Internal("said before"))
            return _fail_later()

    def factory(log: GatedLog, author: Author) -> Factory:
        def make(hub: Any) -> Any:
            manager = session_manager(hub, log, author=author)
            manager.router = Broken(hub, log, author)
            return manager

        return make

    node = await make_node(factory=factory)
    async with node.client() as client:
        answer = await client.call("hub.invoke", b'[{"to":"all"},"say",[]]')
        assert answer["error"].startswith("internal: ")
        assert (await client.call("hub.groups", b"[]"))["result"] == []
        assert len(answers(client)) == 2, "each is answered once"


async def test_what_sessions_are_told_about_themselves(node: Node):
    async with node.client("?user=ann&meta=%7B%22a%22%3A1%7D") as client:
        about = (await client.call("hub.session", b"[]"))["result"]
        (subject,) = node.log.sessions()
        opened = node.log._partitions[0].last_of(subject)
        assert opened is not None
        assert about == {
            "sessionId": subject.split(".")[4],
            "userId": "ann",
            "resumeToken": None,
            "cursor": f"mema.0-{opened.sequence}",
            "groups": [],
            "resumed": False,
            "resync": None,
        }
        assert bytes(node.log.sessions()[subject].metadata) == b'{"a":1}'
        joined = (await client.call("hub.join", b'[["red","blue","red"]]'))["result"]
        assert joined == {"position": "mema.0-2", "groups": ["blue", "red"]}
        assert (await client.call("hub.join", b'["red"]'))["result"] == joined, "nothing changed"
        left = (await client.call("hub.leave", b'["red"]'))["result"]
        assert left == {"position": "mema.0-3", "groups": ["blue"]}
        assert (await client.call("hub.leaveAll", b"[]"))["result"] == {"position": "mema.0-4", "groups": []}
        await client.call("hub.invoke", b'[{"to":"others"},"say",[]]')
        assert (await client.call("hub.session", b"[]"))["result"]["cursor"] == "mema.0-5"


async def test_the_ttl_of_a_call_is_stored_and_bounded(node: Node):
    async with node.client() as client:
        stored = await client.call("hub.invoke", b'[{"to":"all"},"say",[],{"ttlMs":5000,"key":"k"}]')
        repeated = await client.call("hub.invoke", b'[{"to":"all"},"say",[],{"ttlMs":5000,"key":"k"}]')
        assert stored["result"] == repeated["result"]
        ((envelope, event),) = node.log.events(SUBJECTS.all())
        assert isinstance(event, invocation.Requested)
        assert (event.ttl_ms, envelope.id) == (5000, stored["result"]["invocationId"])
        other = await client.call("hub.invoke", b'[{"to":"all"},"say",[1],{"key":"k"}]')
        assert other["error"].startswith("key_reused: ")
        for wrong in (b"0", b"-1", b"1.5", b'"1"'):
            refused = await client.call("hub.invoke", b'[{"to":"all"},"say",[],{"ttlMs":%s}]' % wrong)
            assert refused["error"].startswith("invalid_option: "), wrong
