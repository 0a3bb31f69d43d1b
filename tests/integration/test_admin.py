"""The admin port over real HTTP, and what logs look like."""

import io
import json
import logging
import os

import aiohttp
import pytest
import structlog

from events.errors import Misconfigured
from service.admin import admin_app, serving
from service.telemetry import Metrics, configure_logging
from service.telemetry.tracing import Tracing, within
from tests.servers.api import Raw, is_problem


async def get(url: str) -> tuple[int, str]:
    async with aiohttp.ClientSession() as session, session.get(url) as answer:
        return answer.status, await answer.text()


@pytest.fixture
def metrics() -> Metrics:
    return Metrics("gateway")


async def test_readiness_says_why_not_and_recovers_by_itself(metrics: Metrics) -> None:
    trouble: dict[str, str | None] = {"nats": "disconnected for 3 s"}

    async def schema() -> str | None:
        return None

    checks = {"nats": lambda: trouble["nats"], "schema": schema}
    app = admin_app(metrics, checks, details=lambda: {"canary": None})
    async with serving(app, "127.0.0.1", 0, setting="HUBLOG_ADMIN_PORT") as port:
        status, body = await get(f"http://127.0.0.1:{port}/readyz")
        assert status == 503
        assert json.loads(body) == {
            "ready": False,
            "checks": {"nats": "disconnected for 3 s", "schema": "ok"},
            "pid": os.getpid(),
            "canary": None,
        }
        assert (await get(f"http://127.0.0.1:{port}/livez"))[0] == 200
        trouble["nats"] = None
        assert (await get(f"http://127.0.0.1:{port}/readyz"))[0] == 200


async def test_a_check_that_fails_is_an_answer(metrics: Metrics) -> None:
    def broken() -> str | None:
        raise RuntimeError("no idea")

    async with serving(admin_app(metrics, {"x": broken}), "127.0.0.1", 0, setting="HUBLOG_ADMIN_PORT") as port:
        status, body = await get(f"http://127.0.0.1:{port}/readyz")
    assert (status, json.loads(body)["checks"]["x"]) == (503, "RuntimeError: no idea")


NO_REQUESTS = {
    "no host": b"GET /livez HTTP/1.1\r\n\r\n",
    "a long header": b"GET /livez HTTP/1.1\r\nHost: a\r\nX: " + b"secret" * 1_500 + b"\r\n\r\n",
    "raw bytes in the path": b"GET /livez/secret\xe9 HTTP/1.1\r\nHost: a\r\n\r\n",
    "an unknown encoding": b"POST /livez HTTP/1.1\r\nHost: a\r\nContent-Encoding: secret\r\nContent-Length: -1\r\n\r\n",
}


@pytest.mark.parametrize("sent", NO_REQUESTS.values(), ids=NO_REQUESTS.keys())
async def test_bytes_that_are_no_request_are_refused_and_not_logged(
    metrics: Metrics, caplog: pytest.LogCaptureFixture, sent: bytes
) -> None:
    async with serving(admin_app(metrics, {}), "127.0.0.1", 0, setting="HUBLOG_ADMIN_PORT") as port:
        answer = await Raw(port).exchange(sent)
        assert (await get(f"http://127.0.0.1:{port}/livez"))[0] == 200
    assert is_problem(answer)
    assert answer.json["code"] in {"bad_message", "payload_too_large"}
    assert b"secret" not in answer.body
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_what_is_not_served_is_refused_as_by_the_api(metrics: Metrics) -> None:
    async with serving(admin_app(metrics, {}), "127.0.0.1", 0, setting="HUBLOG_ADMIN_PORT") as port:
        nowhere = await Raw(port).exchange(b"GET /healthz?token=secret HTTP/1.1\r\nHost: a\r\n\r\n")
        posted = await Raw(port).exchange(b"POST /livez HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n")
    assert is_problem(nowhere)
    assert (nowhere.status, nowhere.json["code"], nowhere.json["instance"]) == (404, "not_found", "/healthz")
    assert b"secret" not in nowhere.body
    assert is_problem(posted)
    assert (posted.status, posted.json["code"]) == (405, "method_not_allowed")
    assert posted.headers["allow"] == "GET, HEAD"


async def test_metrics_show_plain_numbers_as_they_are_now(metrics: Metrics) -> None:
    counted = {"deliveries": 0}
    metrics.counter("hublog_deliveries_total", lambda: counted["deliveries"])
    standings = ({"standing": "active"}, 2), ({"standing": "closed"}, 1)
    metrics.gauge("hublog_connections_by_standing", lambda: standings)
    async with serving(admin_app(metrics, {}), "127.0.0.1", 0, setting="HUBLOG_ADMIN_PORT") as port:
        counted["deliveries"] = 41
        await get(f"http://127.0.0.1:{port}/metrics")
        counted["deliveries"] = 42
        _, text = await get(f"http://127.0.0.1:{port}/metrics")
    assert "hublog_deliveries_total 42.0" in text
    assert 'hublog_connections_by_standing{standing="active"} 2.0' in text
    assert 'hublog_connections_by_standing{standing="closed"} 1.0' in text


async def test_a_taken_port_is_named_with_its_setting(metrics: Metrics) -> None:
    async with serving(admin_app(metrics, {}), "127.0.0.1", 0, setting="HUBLOG_ADMIN_PORT") as port:
        with pytest.raises(Misconfigured, match=rf"port {port} on 127.0.0.1 is taken.*HUBLOG_ADMIN_PORT"):
            async with serving(admin_app(metrics, {}), "127.0.0.1", port, setting="HUBLOG_ADMIN_PORT"):
                raise AssertionError("it must not serve")


@pytest.fixture
def log_output():
    output = io.StringIO()
    root = logging.getLogger()
    before = (root.level, root.handlers[:])
    configure_logging("info", process="gateway-0", stream=output)
    yield output
    root.setLevel(before[0])
    root.handlers[:] = before[1]
    structlog.reset_defaults()


def test_outside_a_terminal_every_line_is_json(log_output: io.StringIO) -> None:
    structlog.get_logger().info("session_opened", session_id="s1", position="abcd.0-1")
    structlog.get_logger().debug("not_shown")
    try:
        raise ValueError("inner")
    except ValueError:
        logging.getLogger("some.library").exception("it failed")
    first, second = map(json.loads, log_output.getvalue().splitlines())
    shown = {name: first[name] for name in ("event", "process", "level", "session_id")}
    assert shown == {"event": "session_opened", "process": "gateway-0", "level": "info", "session_id": "s1"}
    assert second["event"] == "it failed"
    assert second["exception"][0]["exc_value"] == "inner"


def test_what_is_said_within_a_traced_command_names_its_trace(log_output: io.StringIO) -> None:
    span = Tracing().command("hub.invoke", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", {})
    assert span is not None
    with within(span):
        structlog.get_logger().info("session.opened", session_id="s1")
        logging.getLogger("some.library").warning("odd")
    structlog.get_logger().info("session.closed", session_id="s1")
    lines = [json.loads(line) for line in log_output.getvalue().splitlines()]
    assert [line.get("trace_id") for line in lines] == ["0af7651916cd43dd8448eb211c80319c"] * 2 + [None]
    assert [line.get("session_id") for line in lines] == ["s1", None, "s1"]
