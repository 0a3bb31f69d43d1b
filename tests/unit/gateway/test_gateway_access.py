"""The lock on a gateway's door: which token lets whom into which hub, what a refusal says, and when it ends."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import quote, urlsplit

import aiohttp
import jwt
import msgspec
import pytest
from structlog.testing import capture_logs
from yarl import URL

from service.access.bearer import LEEWAY_S, Verifier
from service.access.door import LINES_PER_S, Door
from service.access.keys import read_keys
from service.access.origins import Origins
from tests.servers.gateway import SUBJECTS, MakeNode, Node, until

SECRET = b"0123456789abcdef0123456789abcdef"
KEYS = read_keys("HS256", "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY", setting="KEY")
DAY_S = 86_400  # some tokens are made while tests are collected, long before they run
UPGRADE = {
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    "Sec-WebSocket-Version": "13",
}


def token(key: bytes = SECRET, **claims: Any) -> str:
    return jwt.encode({"sub": "ann", "exp": time.time() + DAY_S, **claims}, key, algorithm="HS256")


@pytest.fixture
async def locked(make_node: MakeNode) -> Node:
    return await make_node(door=Door(Verifier(KEYS), Origins(["https://app.example"])))


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as made:
        yield made


async def refused(http: aiohttp.ClientSession, url: str, **headers: str) -> tuple[int, str]:
    """Status and code with which negotiation and upgrade are refused, both alike."""
    answers = []
    for method, path, more in (("POST", "/negotiate", {}), ("GET", "", UPGRADE)):
        at, _, query = url.partition("?")
        async with http.request(method, f"{at}{path}?{query}", headers={**more, **headers}) as answer:
            document = await answer.json(content_type="application/problem+json")
            answers.append((answer.status, document["code"]))
            assert document["hint"]
            said = answer.headers.get("WWW-Authenticate", "")
            assert said.startswith('Bearer realm="hublog"')
            assert (document["code"] in said) == (document["code"] != "token_missing")
            assert "eyJ" not in str(document) + said
    assert answers[0] == answers[1]
    return answers[0]


@pytest.mark.parametrize("way", ["query", "header"])
async def test_a_token_says_who_somebody_is(http: aiohttp.ClientSession, locked: Node, way: str):
    good = token(hubs=["games", "chat"], meta={"device": "phone"})
    query, headers = ("", {"Authorization": f"Bearer {good}"}) if way == "header" else (f"?access_token={good}", {})
    async with http.post(f"{locked.url}/hubs/chat/negotiate{query}", headers=headers) as answer:
        negotiated = await answer.json()
    with_id = f"{query}{'&' if query else '?'}id={negotiated['connectionId']}"
    for url in (f"{locked.url}/hubs/chat{query}", f"{locked.url}/hubs/chat{with_id}"):
        async with http.ws_connect(url, headers=headers) as socket:
            await socket.send_str('{"protocol":"json","version":1}\x1e')
            assert await socket.receive_str(timeout=5) == "{}\x1e"
            await socket.send_str('{"type":1,"invocationId":"1","target":"hub.session","arguments":[]}\x1e')
            said = msgspec.json.decode((await socket.receive_str(timeout=5)).rstrip("\x1e"))["result"]
            assert said["userId"] == "ann"
            state = locked.log.sessions()[SUBJECTS.session(said["sessionId"])]
            assert bytes(state.metadata) == b'{"device":"phone"}'


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("", (401, "token_missing")),
        ("?access_token=", (401, "token_missing")),
        ("?access_token=nonsense", (401, "token_invalid")),
        (f"?access_token={token(b'f' * 32)}", (401, "token_invalid")),
        (f"?access_token={token(exp=1)}", (401, "token_expired")),
        (f"?access_token={token(sub=None)}", (401, "token_invalid")),
        (f"?access_token={token(hubs=['games'])}", (403, "hub_forbidden")),
        (f"?access_token={token(hubs=[])}", (403, "hub_forbidden")),
    ],
)
async def test_without_the_right_token_nobody_connects(
    http: aiohttp.ClientSession, locked: Node, query: str, expected: tuple[int, str]
):
    with capture_logs() as lines:
        assert await refused(http, f"{locked.url}/hubs/chat{query}") == expected
    assert locked.server._door.refusals == {expected[1]: 2}
    assert [(line["event"], line["code"], line["at"]) for line in lines] == [
        ("access.refused", expected[1], "negotiate"),
        ("access.refused", expected[1], "connect"),
    ]
    assert "eyJ" not in str(lines)
    assert not locked.log.sessions()


async def test_nobody_says_who_they_are_beside_their_token(http: aiohttp.ClientSession, locked: Node):
    url = f"{locked.url}/hubs/chat?access_token={token()}"
    for more in ("&user=bob", "&user=", "&meta=%7B%7D"):
        async with http.get(url + more, headers=UPGRADE) as answer:
            document = await answer.json(content_type=None)
            assert (answer.status, document["code"]) == (400, "invalid_query")
        async with http.post(url.replace("?", "/negotiate?") + more) as answer:
            assert (await answer.json())["error"].startswith("invalid_query: ")
    async with http.ws_connect(url + "&user=ann"):
        pass


@pytest.mark.parametrize(
    "query", ["user=%ff", "user=%ED%A0%80", "user=caf%E9", "user=ann&meta=%7B%22a%22:%22%fe%22%7D"]
)
async def test_a_name_in_bytes_that_are_no_utf8_is_refused_and_not_mended(
    http: aiohttp.ClientSession, node: Node, query: str
):
    url = URL(f"{node.url}/hubs/chat?{query}", encoded=True)
    async with http.get(url, headers=UPGRADE) as answer:
        assert (answer.status, (await answer.json(content_type=None))["code"]) == (400, "invalid_query")
    async with http.post(URL(f"{node.url}/hubs/chat/negotiate?{query}", encoded=True)) as answer:
        assert (await answer.json())["error"].startswith("invalid_query: the query is not UTF-8")
    assert not node.log.sessions()


async def test_a_negotiation_is_only_for_who_negotiated(http: aiohttp.ClientSession, locked: Node):
    async with http.post(f"{locked.url}/hubs/chat/negotiate?access_token={token()}") as answer:
        sealed = (await answer.json())["connectionId"]
    for query, expected in (
        (f"?id={sealed}&access_token={token(sub='bob')}", (403, "token_user_mismatch")),
        (f"?id={sealed}", (401, "token_missing")),
    ):
        async with http.get(f"{locked.url}/hubs/chat{query}", headers=UPGRADE) as answer:
            assert (answer.status, (await answer.json(content_type=None))["code"]) == expected
    assert locked.server._door.refusals == {"token_user_mismatch": 1, "token_missing": 1}


async def test_only_its_user_resumes_a_session(locked: Node):
    async with locked.client(f"?resumable=1&access_token={token()}") as client:
        about = (await client.call("hub.session", b"[]"))["result"]
    resume = f"&resume={about['resumeToken']}&cursor={quote(about['cursor'])}"
    async with locked.client(f"?resumable=1&access_token={token(sub='bob')}{resume}") as thief:
        told = (await thief.call("hub.session", b"[]"))["result"]
        assert (told["resumed"], told["code"], told["userId"]) == (False, "token_user_mismatch", "bob")
        assert told["sessionId"] != about["sessionId"]
    async with locked.client(f"?resumable=1&access_token={token()}{resume}") as client:
        told = (await client.call("hub.session", b"[]"))["result"]
        assert (told["resumed"], told["sessionId"]) == (True, about["sessionId"])


@pytest.mark.parametrize(("resumable", "status"), [("", "closed"), ("&resumable=1", "detached")])
async def test_a_connection_ends_with_its_token_and_may_come_back(locked: Node, resumable: str, status: str):
    soon = token(exp=time.time() - LEEWAY_S + 1.5)
    async with locked.client(f"?access_token={soon}{resumable}") as client:
        said = await client.record(containing=b'"type":7')
        await client.end()
    close = msgspec.json.decode(said)
    assert close["error"].startswith("token_expired: ")
    assert close["allowReconnect"] is True
    await until(lambda: next(iter(locked.log.sessions().values())).status == status, f"it to be {status}")
    state = next(iter(locked.log.sessions().values()))
    assert status == "detached" or state.reason == "unauthorised"


async def test_a_page_can_read_why_it_was_refused(http: aiohttp.ClientSession, locked: Node):
    url = f"{locked.url}/hubs/chat/negotiate"
    async with http.post(url, headers={"Origin": "https://app.example"}) as answer:
        assert answer.status == 401
        assert answer.headers["Access-Control-Allow-Origin"] == "https://app.example"
        assert answer.headers["Access-Control-Allow-Credentials"] == "true"
    # A page of another origin hears nothing of tokens, right or wrong.
    async with http.post(f"{url}?access_token={token()}", headers={"Origin": "https://evil.example"}) as answer:
        assert (answer.status, (await answer.json(content_type=None))["code"]) == (403, "origin_refused")
        assert "Access-Control-Allow-Origin" not in answer.headers


async def test_the_preflight_of_a_stock_browser_client_is_answered(http: aiohttp.ClientSession, locked: Node):
    asked = {
        "Origin": "https://app.example",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,x-requested-with,x-signalr-user-agent",
    }
    async with http.options(f"{locked.url}/hubs/chat/negotiate?negotiateVersion=1", headers=asked) as answer:
        assert answer.status == 204
        assert answer.headers["Access-Control-Allow-Origin"] == "https://app.example"
        assert answer.headers["Access-Control-Allow-Credentials"] == "true"
        assert answer.headers["Access-Control-Allow-Headers"] == asked["Access-Control-Request-Headers"]
    async with http.options(
        f"{locked.url}/hubs/chat/negotiate", headers={**asked, "Origin": "https://evil.example"}
    ) as answer:
        assert answer.status == 403


async def test_without_tokens_a_name_that_points_here_is_no_origin_of_ours(
    http: aiohttp.ClientSession, node: Node, locked: Node
):
    rebound = {"Origin": "http://evil.example:8000", "Host": "evil.example:8000"}
    async with http.post(f"{node.url}/hubs/chat/negotiate", headers=rebound) as answer:
        assert answer.status == 403
    async with http.post(f"{locked.url}/hubs/chat/negotiate?access_token={token()}", headers=rebound) as answer:
        assert answer.status == 200


async def test_a_flood_of_refusals_is_counted_and_not_logged_line_by_line(http: aiohttp.ClientSession, locked: Node):
    with capture_logs() as lines:
        for _ in range(LINES_PER_S * 8):
            async with http.post(f"{locked.url}/hubs/chat/negotiate") as answer:
                assert answer.status == 401
    assert locked.server._door.refusals == {"token_missing": LINES_PER_S * 8}
    assert len(lines) < LINES_PER_S * 8
    assert (
        len(lines) + locked.server._door._unlogged + sum(line["unlogged_before"] for line in lines) == LINES_PER_S * 8
    )


async def test_a_token_in_bytes_that_are_no_request_is_neither_logged_nor_quoted(
    locked: Node, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
):
    long = "x" * 9_000
    requests = [
        (f"GET /hubs/chat?access_token={token()}&pad={long} HTTP/1.1\r\nHost: x\r\n\r\n", "payload_too_large"),
        (f"GET /hubs/chat HTTP/1.1\r\nAuthorization: Bearer {token()}{long}\r\n\r\n", "payload_too_large"),
        (f"GET /hubs/chat?access_token={token()} x HTTP/1.1\r\nHost: x\r\n\r\n", "bad_message"),
    ]
    caplog.set_level("DEBUG")
    with capture_logs() as lines:
        for request, code in requests:
            reader, writer = await asyncio.open_connection("127.0.0.1", urlsplit(locked.url).port)
            writer.write(request.encode())
            async with asyncio.timeout(5):
                head, _, body = (await reader.read()).partition(b"\r\n\r\n")
            document = msgspec.json.decode(body)
            assert document["code"] == code
            assert head.split()[1] == str(document["status"]).encode()
            assert b"eyJ" not in head + body
            writer.close()
            await writer.wait_closed()
    # Libraries are heard from warnings on (service.telemetry), and tracebacks end with what was raised.
    loud = [logging.Formatter().format(record) for record in caplog.records if record.levelno >= logging.WARNING]
    assert "eyJ" not in str(loud) + str(lines) + capsys.readouterr().err
