"""Clients that break the protocol, fall silent, or do not read: a clear error or Close for that one only. The log, the
other clients and the memory do not feel it.
"""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from typing import NamedTuple

import aiohttp
import pytest
import pytest_asyncio

from lab.frames import client_frame
from lab.proc import rss_bytes
from tests.servers.questions import Api
from tests.servers.raw_signalr import BINARY, RawClient
from tests.servers.stock import StockClient, StockClients, fence
from tests.servers.up import Up

pytestmark = pytest.mark.asyncio(loop_scope="module")

MESSAGE_BYTES_MAX = 32_768
SETTINGS = {
    "HUBLOG_HANDSHAKE_TIMEOUT": "1",
    "HUBLOG_PING_INTERVAL": "1",
    "HUBLOG_CLIENT_TIMEOUT": "3",
    "HUBLOG_OUTBOX_BYTES_MAX": "64KiB",
    "HUBLOG_MESSAGE_BYTES_MAX": str(MESSAGE_BYTES_MAX),
}
GROWTH_BYTES_MAX = 32 * 1024 * 1024


class Bystanders(NamedTuple):
    """Two well-behaved clients, one on each gateway. Nothing that others do may reach them."""

    ann: StockClient
    bob: StockClient

    async def go_on(self) -> str:
        """Both are there and talk; gives the position."""
        await fence(self.ann, *self)
        position = await fence(self.bob, *self)
        assert all(client.events == [] for client in self)
        return position


@pytest_asyncio.fixture(loop_scope="module")
async def bystanders(clients: StockClients, gateways: tuple[str, str], hub: str) -> AsyncIterator[Bystanders]:
    ann, bob = [
        await clients.start(name, gateway, hub, keep_alive_ms=1_000)
        for name, gateway in zip(("ann", "bob"), gateways, strict=True)
    ]
    yield Bystanders(ann, bob)
    await Bystanders(ann, bob).go_on()
    assert (ann.said(), bob.said()) == ([], [])


def sequence(position: str) -> int:
    return int(position.rpartition("-")[2])


def call(target: str, arguments: bytes) -> bytes:
    return b'{"type":1,"invocationId":"x","target":"%s","arguments":%s}\x1e' % (target.encode(), arguments)


REFUSED_CALLS = (
    (call("hub.nothing", b"[]"), "method_not_found"),
    (call("Hub.Invoke", b"[]"), "method_not_found"),
    (call("hub.session", b"[1]"), "invalid_arguments"),
    (call("hub.join", b"[]"), "invalid_arguments"),
    (call("hub.join", b'[""]'), "invalid_name"),
    (call("hub.join", b'["\\u0000"]'), "invalid_name"),
    (call("hub.join", b'[["%s"]]' % b'","'.join(b"%d" % n for n in range(129))), "too_many_groups"),
    (call("hub.invoke", b"{}"), "invalid_arguments"),
    (call("hub.invoke", b'[{"to":"all"},"say",7]'), "invalid_arguments"),
    (call("hub.invoke", b'[{"to":"moon"},"say",[]]'), "invalid_selector"),
    (call("hub.invoke", b'[{"to":"all"},"say",["\xff"]]'), "bad_message"),
    (call("hub.invoke", b'[{"to":"all"},"say",' + 100 * b"[" + 100 * b"]" + b"]"), "invalid_arguments"),
    (call("hub.invoke", b'[{"to":"user","user":"\xc0\xaf"},"say",[]]'), "bad_message"),
    (b'{"type":1,"invocationId":"x","target":"hub.join","arguments":["a"],"streamIds":["1"]}\x1e', "not_available"),
    (b'{"type":1,"invocationId":"x","arguments":[]}\x1e', "bad_message"),
    (b'{"type":4,"invocationId":"x","target":"hub.session","arguments":[]}\x1e', "not_available"),
)


async def test_a_refused_call_is_answered_and_leaves_no_trace(
    bystanders: Bystanders, gateways: tuple[str, str], hub: str
) -> None:
    async with RawClient(gateways[0], hub) as client:
        before = await bystanders.go_on()
        for sent, code in REFUSED_CALLS:
            client.records.clear()
            client.send(sent)
            answer = json.loads(await client.record(containing=b'"type":3'))
            assert re.match(rf"{code}: .+\. .+", answer["error"]), (sent[:100], answer)
            assert answer["invocationId"] == "x"
        client.send(b'{"type":1,"target":"hub.nothing","arguments":[]}\x1e')  # wants no answer, gets none
        answered = await client.call("hub.session", b"[]")
        assert answered["result"]["groups"] == []
        assert sequence(await bystanders.go_on()) == sequence(before) + 2, "nothing but the bystanders' own two calls"


FATAL = (
    (b"nothing of this is JSON\x1e", "bad_message"),
    (b'{"type":1,"target":"hub.join","arguments":["\xff"]}\x1e', "bad_message"),
    (call("hub.invoke", b'[{"to":"all"},"say",["\\x"]]'), "bad_message"),
    (call("hub.invoke", b'[{"to":"all"},"say",[1,]]'), "bad_message"),
    (call("hub.invoke", b'[{"to":"all"},"say",' + 5_000 * b"[" + 5_000 * b"]" + b"]"), "bad_message"),
    (b'{"type":99}\x1e', "bad_message"),
    (b'{"type":8,"sequenceId":1}\x1e', "bad_message"),
    (b'{"type":3,"invocationId":"1","result":1,"error":"both"}\x1e', "bad_message"),
    (b'{"type":1,"target":"hub.join","arguments":"lobby"}\x1e', "invalid_arguments"),
    (call("hub.invoke", b'[{"to":"all"},"say",["%s"]]' % (MESSAGE_BYTES_MAX * b"x")), "message_too_large"),
    (MESSAGE_BYTES_MAX * b" ", "message_too_large"),
)
HUGE = 20 * MESSAGE_BYTES_MAX * b" "  # WebSocket itself refuses to collect it
NORMAL, TOO_BIG = 1000, 1009


@pytest.mark.parametrize("gateway", [0, 1])
async def test_a_broken_message_ends_that_connection_with_a_close_that_says_why(
    bystanders: Bystanders, gateways: tuple[str, str], hub: str, api: Api, gateway: int
) -> None:
    for payload, code in FATAL:
        async with RawClient(gateways[gateway], hub) as client:
            client.send(payload)
            await says_close(client, code)
    async with RawClient(gateways[gateway], hub) as client:
        client.send(b'{"type":6}\x1e', BINARY)
        await says_close(client, "bad_message")
    async with RawClient(gateways[gateway], hub) as client:
        client.send(HUGE)
        await client.end()
        assert client.close_code == TOO_BIG
    end = await bystanders.go_on()
    await all_closed(api, opened=len(FATAL) + 2)
    events = [event["type"] for event in await api.items("events", min_position=end)]
    assert {event: events.count(event) for event in events} == {
        "session.opened.v1": len(FATAL) + 2 + len(bystanders),
        "session.closed.v1": len(FATAL) + 2,
        "invocation.requested.v1": 2,  # the bystanders' own
    }


async def says_close(client: RawClient, code: str) -> None:
    """A Close that names the code and allows no reconnect, then the end."""
    await client.end()
    (close,) = [json.loads(record) for record in client.records if b'"type":7' in record]
    assert re.match(rf"{code}: .+\. .+", close["error"]), close
    assert "allowReconnect" not in close
    assert client.close_code == NORMAL


async def all_closed(api: Api, *, opened: int, reasons: tuple[str, ...] = ("transport_error",)) -> list[str]:
    """Wait until as many sessions as were opened beside the bystanders' are closed; gives the reasons, in order."""
    events = await api.until("events", lambda closed: len(closed) >= opened, type="session.closed")
    given = [event["data"]["reason"] for event in events]
    assert len(given) == opened
    assert set(given) <= set(reasons)
    return given


BROKEN_FRAMES = (
    b"\xf1\x80\0\0\0\0",  # reserved bits
    b"\x81\x05hello",  # not masked
    b"\x83\x80\0\0\0\0",  # an opcode that does not exist
    b"\x09\x80\0\0\0\0",  # a ping in fragments
    b"\x81\xff\x7f\xff\xff\xff\xff\xff\xff\xff\0\0\0\0",  # eight exbibytes are announced
    b"\x80\x80\0\0\0\0",  # the rest of nothing
    client_frame(b"x")[:-1],  # and then silence
)


async def test_a_broken_frame_ends_that_connection(
    bystanders: Bystanders, gateways: tuple[str, str], hub: str, api: Api
) -> None:
    async def ended(frame: bytes) -> None:
        async with RawClient(gateways[0], hub) as client:
            client.writer.write(frame)
            await client.end()

    await asyncio.gather(*map(ended, BROKEN_FRAMES))
    await all_closed(api, opened=len(BROKEN_FRAMES), reasons=("transport_error", "timeout"))
    await bystanders.go_on()


BAD_HANDSHAKES = (
    (b"hello\x1e", "bad_handshake"),
    (b'{"protocol":"json"}\x1e', "bad_handshake"),
    (b'{"type":1,"target":"hub.session","arguments":[]}\x1e', "bad_handshake"),
    (b'{"protocol":"json","version":1,"x":"\xff"}\x1e', "bad_handshake"),
    (b'{"protocol":"messagepack","version":1}\x1e', "unsupported_protocol"),
    (b'{"protocol":"json","version":3}\x1e', "unsupported_protocol"),
    (2 * MESSAGE_BYTES_MAX * b"x", "message_too_large"),
    (b"", "handshake_timeout"),
    (b'{"protocol":"json","version":1}', "handshake_timeout"),  # its end never comes
)


async def test_who_does_not_say_hello_is_told_so_and_never_becomes_a_session(
    bystanders: Bystanders, gateways: tuple[str, str], hub: str
) -> None:
    before = await bystanders.go_on()

    async def refused(payload: bytes, code: str) -> None:
        async with RawClient(gateways[1], hub, handshake=None) as client:
            if payload:
                client.send(payload)
            await client.end()
            (said,) = client.records
            assert re.match(rf"{code}: .+\. .+", json.loads(said)["error"]), said

    await asyncio.gather(*(refused(payload, code) for payload, code in BAD_HANDSHAKES))
    assert sequence(await bystanders.go_on()) == sequence(before) + 2, "nothing but the bystanders' own two calls"


async def test_requests_that_are_no_connection_get_a_problem_or_a_refusal(
    bystanders: Bystanders, gateways: tuple[str, str], hub: str
) -> None:
    before = await bystanders.go_on()
    url = gateways[0]
    async with aiohttp.ClientSession() as session:

        async def problem(method: str, path: str, **headers: str) -> tuple[int, str]:
            async with session.request(method, f"{url}{path}", headers=headers) as answer:
                return answer.status, json.loads(await answer.read())["code"]

        upgrade = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13"}
        key = {**upgrade, "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA=="}
        assert await problem("GET", f"/hubs/{hub}") == (400, "invalid_query")
        assert await problem("GET", "/hubs/No_Hub", **key) == (400, "invalid_name")
        assert await problem("GET", f"/hubs/{hub}?id=made-up", **key) == (404, "bad_token")
        assert await problem("GET", f"/hubs/{hub}?meta=[1]", **key) == (400, "invalid_query")
        assert await problem("GET", f"/hubs/{hub}?meta={{%22a%22:%22{2_048 * 'x'}%22}}", **key) == (
            400,
            "invalid_query",
        )
        assert await problem("GET", f"/hubs/{hub}?user=", **key) == (400, "invalid_name")
        assert await problem("GET", f"/hubs/{hub}", **key, Origin="https://evil.example") == (403, "origin_refused")
        assert await problem("GET", "/nothing") == (404, "not_found")
        assert await problem("DELETE", f"/hubs/{hub}") == (405, "method_not_allowed")
        async with session.post(f"{url}/hubs/No_Hub/negotiate?negotiateVersion=1") as answer:
            assert (await answer.json())["error"].startswith("invalid_name: ")
        async with session.get(f"{url}/hubs/{hub}", headers=upgrade) as answer:
            assert answer.status == 400
    assert sequence(await bystanders.go_on()) == sequence(before) + 2


async def test_invalid_utf8_by_the_api_is_refused(bystanders: Bystanders, hub: str, api: Api) -> None:
    before = await bystanders.go_on()
    for body, code in (
        (b'{"selector":{"to":"all"},"target":"say","arguments":["\xff"]}', "invalid_body"),
        (b'{"selector":{"to":"all"},"target":"\xed\xa0\x80","arguments":[]}', "invalid_body"),
        (b'{"selector":{"to":"all"},"target":"say","arguments":[1}', "invalid_body"),
        (b'{"selector":{"to":"all"},"target":"say","arguments":{}}', "invalid_arguments"),
        (b'{"selector":{"to":"moon"},"target":"say","arguments":[]}', "invalid_selector"),
        (b'{"selector":{"to":"all"},"target":"say","arguments":[],"more":1}', "invalid_body"),
        (b"", "invalid_body"),
    ):
        assert await api.refused("POST", "invocations", body) == (400, code), body
    assert (await api.raw("PUT", f"groups/%FF/members/{bystanders.ann.session}"))[0] == 400
    assert sequence(await bystanders.go_on()) == sequence(before) + 2


async def test_who_falls_silent_is_closed_and_who_vanishes_too(
    bystanders: Bystanders, gateways: tuple[str, str], hub: str, api: Api
) -> None:
    async with RawClient(gateways[0], hub) as silent:
        async with RawClient(gateways[0], hub):
            pass  # cut without a word
        await silent.end()
        close = json.loads(await silent.record(containing=b'"type":7'))
        assert close["error"].startswith("client_timeout: ")
        assert close["allowReconnect"] is True
        assert b'{"type":6}' in silent.records, "it was sent pings"
    closed = await all_closed(api, opened=2, reasons=("transport_error", "timeout"))
    assert closed == ["transport_error", "timeout"]
    await bystanders.go_on()


STUCK = 20
FLOOD = 600
PIECE = 16 * 1024


async def test_who_does_not_read_is_cut_off_and_slows_nobody(
    bystanders: Bystanders, gateways: tuple[str, str], hub: str, api: Api, served: Up
) -> None:
    gateway = served.entry("gateway", 0)
    ann, _ = bystanders
    group = {"to": "group", "group": "flood"}
    await ann.invoke("hub.join", "flood")
    stuck = [await RawClient(gateways[0], hub).__aenter__() for _ in range(STUCK)]
    for client in stuck:
        assert "error" not in await client.call("hub.join", b'["flood"]')
        client.stop_reading()
    before = rss_bytes(gateway.pid or 0)
    piece = "x" * PIECE
    try:
        async with RawClient(gateways[1], hub) as sender:
            for number in range(FLOOD):
                arguments = json.dumps([group, "say", [number, piece]]).encode()
                assert "error" not in await sender.call("hub.invoke", arguments)
                sender.records.clear()
            await fence(ann, ann)
            assert ann.said() == list(range(FLOOD)), "the one who reads got all of it, in order"
            await all_closed(api, opened=STUCK, reasons=("slow_consumer",))
        assert rss_bytes(gateway.pid or 0) - before < GROWTH_BYTES_MAX
    finally:
        for client in stuck:
            await client.__aexit__()
    ann.heard.clear()


async def test_a_storm_of_bad_clients_leaves_no_memory_behind(
    bystanders: Bystanders, gateways: tuple[str, str], hub: str, served: Up
) -> None:
    pids = [served.entry("gateway", index).pid or 0 for index in range(2)]

    async def storm(clients: int) -> None:
        async def one(number: int) -> None:
            async with RawClient(gateways[number % 2], hub) as client:
                client.send(FATAL[number % len(FATAL)][0])
                await client.end()

        for start in range(0, clients, 20):
            await asyncio.gather(*(one(start + offset) for offset in range(20)))

    await storm(100)  # so that what is kept for good is there
    before = [rss_bytes(pid) for pid in pids]
    await storm(400)
    for pid, bytes_before in zip(pids, before, strict=True):
        assert rss_bytes(pid) - bytes_before < GROWTH_BYTES_MAX
    await bystanders.go_on()
