"""The API's HTTP manners, on real sockets: every failure is a problem document, whatever was sent."""

import asyncio
import gzip
import logging

import msgspec
import pytest
import structlog

from events.errors import LogUnavailable
from events.ids import GroupName, HubName
from service.access.door import Door
from service.access.origins import Origins
from service.api.routes import Table, get, post
from service.api.server import BODY_BYTES_MAX, Dispatcher
from tests.servers.api import Raw, is_problem, serving


class Echo(msgspec.Struct, forbid_unknown_fields=True):
    value: msgspec.Raw


class Named(msgspec.Struct):
    group: str


async def echo(api: object, hub: HubName, body: Echo) -> Echo:
    return body


async def named(api: object, hub: HubName, group: GroupName) -> Named:
    return Named(group)


async def broken(api: object) -> Named:
    raise RuntimeError("the secret of the house")


async def away(api: object) -> Named:
    raise LogUnavailable("NATS is away")


TABLE = Table(
    [get("/groups/{hub}/{group}", named), post("/echo/{hub}", echo), get("/broken", broken), get("/away", away)]
)


@pytest.fixture
async def api():
    async with serving(Dispatcher(TABLE, None)) as raw:
        yield raw


async def test_a_name_comes_through_as_it_was_sent(api: Raw):
    answer = await api.get("/groups/chat/a%2Fb%20%F0%9F%91%8B..")
    assert (answer.status, answer.json) == (200, {"group": "a/b 👋.."})
    assert answer.headers["content-type"] == "application/json; charset=utf-8"
    assert (await api.get("/groups/chat/..")).json == {"group": ".."}
    assert (await api.get("http://elsewhere/groups/chat/x")).json == {"group": "x"}


async def test_bytes_come_back_byte_for_byte(api: Raw):
    body = b'{"value":[1.0,  "\xc3\xa9\\u00e9", {"b":1,"a":2}]}'
    answer = await api.request("POST", "/echo/chat", body)
    assert (answer.status, answer.body) == (200, body)


async def test_head_answers_as_get_without_the_body(api: Raw):
    answer = await api.request("HEAD", "/groups/chat/x")
    assert (answer.status, answer.headers["content-length"], answer.body) == (200, str(len('{"group":"x"}')), b"")
    assert (await api.request("HEAD", "/nowhere")).status == 404


@pytest.mark.parametrize(
    ("method", "target", "status", "code"),
    [
        ("GET", "/", 404, "not_found"),
        ("GET", "/groups/chat/x/", 404, "not_found"),
        ("GET", "/groups/chat/%ff", 400, "invalid_name"),
        ("GET", "/groups/chat/x?y=1", 400, "invalid_query"),
        ("DELETE", "/groups/chat/x", 405, "method_not_allowed"),
        ("OPTIONS", "/groups/chat/x", 405, "method_not_allowed"),
        ("PATCH", "/groups/chat/x", 405, "method_not_allowed"),
        ("POST", "/echo/chat", 400, "invalid_body"),
        ("GET", "/away", 503, "log_unavailable"),
        ("GET", "/broken", 500, "internal"),
    ],
)
async def test_failures_are_problems(api: Raw, method: str, target: str, status: int, code: str):
    answer = await api.request(method, target)
    assert is_problem(answer)
    assert (answer.status, answer.json["code"]) == (status, code)
    assert answer.json["instance"] == target.partition("?")[0]
    assert answer.headers.get("allow") == ("GET, HEAD" if status == 405 else None)
    assert answer.headers.get("retry-after") == ("1" if status == 503 else None)


async def test_a_defect_is_logged_once_and_not_shown(api: Raw):
    with structlog.testing.capture_logs() as lines:
        answer = await api.get("/broken")
    assert b"secret" not in answer.body
    assert [line["event"] for line in lines] == ["api.failed"]


async def test_a_command_is_one_log_line_without_its_body(api: Raw):
    with structlog.testing.capture_logs() as lines:
        await api.request("POST", "/echo/chat", b'{"value":"private"}')
        await api.request("POST", "/echo/chat", b"{")
        await api.get("/groups/chat/x")
    assert [(line["event"], line["hub"], line["status"], line["code"]) for line in lines] == [
        ("api.command", "chat", 200, None),
        ("api.command", "chat", 400, "invalid_body"),
    ]
    assert "private" not in str(lines)


async def test_too_much_is_refused_with_and_without_a_length(api: Raw):
    big = b'{"value":"' + b"x" * BODY_BYTES_MAX + b'"}'
    answer = await api.request("POST", "/echo/chat", big)
    assert is_problem(answer)
    assert (answer.status, answer.json["code"]) == (413, "payload_too_large")
    chunked = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (big[:40_000], big[40_000:])) + b"0\r\n\r\n"
    answer = await api.exchange(b"POST /echo/chat HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked)
    assert (answer.status, answer.json["code"]) == (413, "payload_too_large")
    bomb = gzip.compress(b" " * 50_000_000)
    answer = await api.request("POST", "/echo/chat", bomb, Content_Encoding="gzip")
    assert (answer.status, answer.json["code"]) == (413, "payload_too_large")


@pytest.mark.parametrize(
    "sent",
    [
        b"nonsense\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /" + b"x" * 20_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"y" * 20_000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nbad header\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\r\n\r\n",
        b"POST /echo/chat HTTP/1.1\r\nHost: a\r\nContent-Length: -5\r\n\r\n",
        b"POST /echo/chat HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n\r\n",
        b"POST /echo/chat HTTP/1.1\r\nHost: a\r\nContent-Encoding: gzip\r\nContent-Length: 4\r\n\r\nabcd",
        b"BREW /groups/chat/x HTTP/1.1\r\nHost: a\r\n\r\n",
        b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n",
        b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /\xff\xfe HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET //// HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /?&&=&= HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /groups/chat/x HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nExpect: 1\r\n\r\n"[:-2]
        + b"Bad\x00: 1\r\n\r\n",
    ],
)
async def test_whatever_is_sent_a_problem_comes_back_and_never_ours(api: Raw, sent: bytes):
    answer = await api.exchange(sent)
    assert is_problem(answer)
    assert 400 <= answer.status < 500
    assert (await api.get("/groups/chat/still-here")).status == 200


async def test_expecting_to_continue_is_answered(api: Raw):
    body = b'{"value":1}'
    answer = await api.exchange(
        b"POST /echo/chat HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    )
    assert answer.body == body


async def test_a_body_that_never_ends_is_no_defect(api: Raw):
    with structlog.testing.capture_logs() as lines:
        _, writer = await asyncio.open_connection("127.0.0.1", api.port)
        writer.write(b"POST /echo/chat HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n{")
        await writer.drain()
        writer.transport.abort()
        assert (await api.get("/groups/chat/x")).status == 200
    assert "api.failed" not in [line["event"] for line in lines]


@pytest.mark.parametrize(
    ("line", "status"), [("POST /echo/chat", 400), ("POST /nowhere", 404), ("GET /groups/chat/x", 200)]
)
async def test_a_body_that_is_not_as_its_headers_say_is_no_defect(
    api: Raw, caplog: pytest.LogCaptureFixture, line: str, status: int
):
    reader, writer = await asyncio.open_connection("127.0.0.1", api.port)
    try:
        async with asyncio.timeout(10):
            writer.write(line.encode() + b" HTTP/1.1\r\nHost: a\r\n")
            writer.write(b"Content-Encoding: gzip\r\nContent-Length: 2\r\n\r\n{}")
            answer = await reader.read()  # up to the end: the connection is of no more use
    finally:
        writer.close()
    assert int(answer.split()[1]) == status
    assert status != 400 or b'"code":"invalid_body"' in answer
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize(
    ("origin", "status"), [("http://evil.example", 403), ("null", 403), ("http://[", 403), ("http://api", 403)]
)
async def test_pages_of_other_sites_may_not_command(api: Raw, origin: str, status: int):
    answer = await api.request("POST", "/echo/chat", b'{"value":1}', Origin=origin, Content_Type="text/plain")
    assert answer.status == status
    assert "access-control-allow-origin" not in answer.headers
    assert (await api.request("GET", "/groups/chat/x", Origin=origin)).status == 200


async def test_answers_do_not_say_what_they_are_made_with(api: Raw):
    for target in ("/groups/chat/x", "/nowhere"):
        assert (await api.get(target)).headers["server"] == "hublog"


async def test_named_origins_may():
    async with serving(Dispatcher(TABLE, None, door=Door(origins=Origins(["https://ops.example"])))) as api:
        answer = await api.request("POST", "/echo/chat", b'{"value":1}', Origin="https://ops.example")
        assert answer.status == 200
        own = await api.request("POST", "/echo/chat", b'{"value":1}', Origin="http://api")
        assert own.status == 200


async def test_a_connection_is_kept_alive_through_refusals(api: Raw):
    reader, writer = await asyncio.open_connection("127.0.0.1", api.port)
    writer.write(b"GET /nowhere HTTP/1.1\r\nHost: a\r\n\r\nGET /groups/chat/x HTTP/1.1\r\nHost: a\r\n\r\n")
    async with asyncio.timeout(10):
        seen = b""
        while b'{"group":"x"}' not in seen:
            seen += await reader.read(65_536)
    writer.close()
    assert seen.count(b"HTTP/1.1 ") == 2
