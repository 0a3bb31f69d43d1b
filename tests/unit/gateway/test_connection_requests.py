"""Who may connect, as what: negotiation, sealed tokens, origins, users, metadata, and what is not there yet."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from urllib.parse import quote

import aiohttp
import msgspec
import pytest

from events.ids import HubName
from service.gateway import server as gateway_server
from service.gateway import tokens
from service.gateway.transports import websocket
from tests.servers.gateway import SUBJECTS, MakeNode, Node, until
from tests.servers.raw_signalr import HANDSHAKE, RawClient

UPGRADE = {
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    "Sec-WebSocket-Version": "13",
}


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as made:
        yield made


async def negotiate(http: aiohttp.ClientSession, node: Node, query: str = "?negotiateVersion=1") -> dict[str, object]:
    async with http.post(f"{node.url}/hubs/chat/negotiate{query}") as answer:
        assert answer.status == 200
        found: dict[str, object] = await answer.json()
        return found


async def refused(http: aiohttp.ClientSession, url: str, **headers: str) -> tuple[int, str]:
    """The status and code with which an upgrade is refused."""
    async with http.get(url, headers={**UPGRADE, **headers}) as answer:
        return answer.status, (await answer.json(content_type=None))["code"]


def grant(node: Node, hub: str = "chat", *, issued_at_s: float | None = None) -> str:
    at_s = time.time() if issued_at_s is None else issued_at_s
    return tokens.seal_connection(node.ring, tokens.ConnectionGrant(HubName(hub), "c1", at_s))


async def test_a_negotiated_connection_is_who_negotiated(http: aiohttp.ClientSession, node: Node):
    answer = await negotiate(http, node, "?negotiateVersion=1&user=ann&meta=%7B%22a%22%3A1%7D")
    assert answer["negotiateVersion"] == 1
    assert answer["availableTransports"] == [{"transport": "WebSockets", "transferFormats": ["Text"]}]
    assert "useStatefulReconnect" not in answer
    async with node.client(f"?id={answer['connectionToken']}&user=mallory") as client:
        about = (await client.call("hub.session", b"[]"))["result"]
        assert about["userId"] == "ann"
        state = node.log.sessions()[SUBJECTS.session(about["sessionId"])]
        assert (state.connection, bytes(state.metadata)) == (answer["connectionId"], b'{"a":1}')


async def test_in_version_0_the_id_is_what_one_connects_with(http: aiohttp.ClientSession, node: Node):
    answer = await negotiate(http, node, "?user=ann")
    assert answer["negotiateVersion"] == 0
    assert "connectionToken" not in answer
    async with node.client(f"?id={answer['connectionId']}") as client:
        assert (await client.call("hub.session", b"[]"))["result"]["userId"] == "ann"


async def test_a_token_serves_one_live_socket_at_a_time(http: aiohttp.ClientSession, node: Node):
    token = grant(node)
    async with node.client(f"?id={token}") as client:
        assert await refused(http, f"{node.url}/hubs/chat?id={token}") == (409, "connection_in_use")
        assert "result" in await client.call("hub.groups", b"[]")
    await node.empty()
    async with node.client(f"?id={token}") as client:
        assert "result" in await client.call("hub.groups", b"[]")


async def test_of_two_sockets_at_once_on_one_token_one_is_served(
    node: Node, http: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
):
    """Both requests are there before either has been upgraded."""
    upgrading = asyncio.Event()
    prepare = websocket.web.WebSocketResponse.prepare

    async def slowly(self: object, request: object) -> object:
        await upgrading.wait()
        return await prepare(self, request)  # type: ignore[arg-type]

    monkeypatch.setattr(websocket.web.WebSocketResponse, "prepare", slowly)
    token = grant(node)
    first = asyncio.ensure_future(RawClient(node.url, "chat", f"?id={token}").__aenter__())
    await until(lambda: bool(node.server._in_use), "the first request to be there")
    assert await refused(http, f"{node.url}/hubs/chat?id={token}") == (409, "connection_in_use")
    upgrading.set()
    client = await first
    assert "result" in await client.call("hub.groups", b"[]")
    assert len(node.context.coordinator) == 1
    await client.__aexit__()
    await node.empty()


async def test_tokens_of_others_are_refused(http: aiohttp.ClientSession, node: Node, make_node: MakeNode):
    elsewhere = await make_node()
    for token in (
        grant(node, "other"),
        grant(node, issued_at_s=time.time() - tokens.CONNECTION_TTL_S - 1),
        grant(node, issued_at_s=time.time() + tokens.CLOCK_SKEW_S + 5),
        grant(elsewhere),
        "nonsense",
        "",
    ):
        assert await refused(http, f"{node.url}/hubs/chat?id={token}") == (404, "bad_token")
    await node.empty()


@pytest.mark.parametrize("name", gateway_server.PARAMETERS)
async def test_a_parameter_that_stands_twice_is_not_guessed_at(http: aiohttp.ClientSession, node: Node, name: str):
    twice = f"{name}=1&other=x&%{ord(name[0]):02X}{name[1:]}=1"  # percent-encoded, it is the same name
    assert await refused(http, f"{node.url}/hubs/chat?{twice}") == (400, "invalid_query")
    told = await negotiate(http, node, f"?{twice}")
    assert str(told["error"]).startswith(f"invalid_query: the parameter '{name}' stands twice. ")
    assert len(told) == 1
    await node.empty()


async def test_parameters_of_others_may_stand_there_as_they_like(http: aiohttp.ClientSession, node: Node):
    assert "connectionToken" in await negotiate(http, node, "?negotiateVersion=1&user=ann&utm=1&utm=2")
    async with node.client("?user=ann&User=bob&utm=1&utm=2") as client:
        assert (await client.call("hub.session", b"[]"))["result"]["userId"] == "ann"


async def test_pages_of_other_origins_may_not_connect(http: aiohttp.ClientSession, make_node: MakeNode):
    node = await make_node(origins=("https://app.example",))
    url = f"{node.url}/hubs/chat"
    for origin in ("https://evil.example", "null", "http://[", "https://app.example.evil"):
        assert await refused(http, url, Origin=origin) == (403, "origin_refused")
        async with http.post(f"{url}/negotiate", headers={"Origin": origin}) as answer:
            assert answer.status == 403
            assert "Access-Control-Allow-Origin" not in answer.headers
    for origin in ("https://app.example", node.url):
        async with http.post(f"{url}/negotiate", headers={"Origin": origin}) as answer:
            assert answer.headers["Access-Control-Allow-Origin"] == origin
            assert answer.headers["Access-Control-Allow-Credentials"] == "true"
            assert answer.headers["Vary"] == "Origin"
        async with http.ws_connect(url, headers={"Origin": origin}) as socket:
            await socket.send_str(HANDSHAKE.decode())
            assert (await socket.receive_str(timeout=5)) == "{}\x1e"


async def test_a_preflight_is_answered(http: aiohttp.ClientSession, make_node: MakeNode):
    node = await make_node(origins=("*",))
    asked = {"Origin": "https://any.example", "Access-Control-Request-Headers": "x-signalr-user-agent"}
    async with http.options(f"{node.url}/hubs/chat/negotiate", headers=asked) as answer:
        assert answer.status == 204
        assert answer.headers["Access-Control-Allow-Origin"] == "https://any.example"
        assert answer.headers["Access-Control-Allow-Methods"] == "GET, POST"
        assert answer.headers["Access-Control-Allow-Headers"] == "x-signalr-user-agent"


WRONG = [
    ("?meta=", "invalid_query"),
    ("?meta=[]", "invalid_query"),
    ("?meta=%7B", "invalid_query"),
    ("?meta=" + quote(json.dumps({"a": "x" * 2048})), "invalid_query"),
    ("?meta=" + quote('{"a":' + "[" * 600 + "]" * 600 + "}"), "invalid_query"),
    ("?user=", "invalid_name"),
    ("?user=" + "u" * 257, "invalid_name"),
]


@pytest.mark.parametrize(("query", "code"), WRONG)
async def test_who_one_says_to_be_must_be_possible(http: aiohttp.ClientSession, node: Node, query: str, code: str):
    assert await refused(http, f"{node.url}/hubs/chat{query}") == (400, code)
    answer = await negotiate(http, node, query)
    assert str(answer["error"]).startswith(f"{code}: ")
    await node.empty()


async def test_metadata_of_the_largest_size_is_kept_byte_for_byte(node: Node):
    meta = json.dumps({"a": "ä" * 5, "b": "x" * 2_000}, ensure_ascii=False)
    assert len(meta.encode()) < 2_048
    async with node.client(f"?user={quote('ann@example.com/ä')}&meta={quote(meta)}"):
        (state,) = node.log.sessions().values()
        assert state.user == "ann@example.com/ä"
        assert msgspec.json.decode(state.metadata) == json.loads(meta)
        assert bytes(state.metadata) == meta.encode()


@pytest.mark.parametrize("query", ["?resumable=perhaps", "?resume=token", "?resume=&cursor=x"])
async def test_what_cannot_be_asked_for_is_said_before_the_upgrade(http: aiohttp.ClientSession, node: Node, query: str):
    async with http.get(f"{node.url}/hubs/h{query}", headers={"Upgrade": "websocket"}) as refused:
        assert refused.status == 400
        assert (await refused.json(content_type=None))["code"] == "invalid_query"
    assert str((await negotiate(http, node, query))["error"]).startswith("invalid_query: ")
    assert node.log.sessions() == {}


async def test_a_draining_node_sends_everybody_elsewhere(http: aiohttp.ClientSession, node: Node):
    token = grant(node)
    await node.server.drain(0.1)
    assert str((await negotiate(http, node))["error"]).startswith("shutting_down: ")
    async with node.client(f"?id={token}", handshake=None) as client:
        client.send(HANDSHAKE)
        assert json.loads(await client.record(containing=b"error"))["error"].startswith("shutting_down: ")
        await client.end()
    assert node.log.sessions() == {}


async def test_requests_that_are_none_of_ours(http: aiohttp.ClientSession, node: Node):
    async def answered(method: str, path: str) -> tuple[int, str]:
        async with http.request(method, node.url + path) as answer:
            return answer.status, (await answer.json(content_type=None))["code"]

    assert await answered("GET", "/hubs/chat") == (400, "invalid_query")
    assert await answered("POST", "/hubs/chat") == (405, "method_not_allowed")
    assert await answered("GET", "/hubs/No_Hub") == (400, "invalid_query")
    assert await answered("GET", "/") == (404, "not_found")
    assert await refused(http, f"{node.url}/hubs/No_Hub") == (400, "invalid_name")
    for version in ("x", "-1", "1_0", "%2B1"):
        answer = await negotiate(http, node, f"?negotiateVersion={version}")
        assert str(answer["error"]).startswith("invalid_query: ")
    assert (await negotiate(http, node, "?negotiateVersion=7"))["negotiateVersion"] == 1
