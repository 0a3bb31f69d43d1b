"""What an operator sees of one running install: traces across its processes, and the metrics of each."""

import asyncio
import json
import secrets
from collections.abc import AsyncIterator

import aiohttp
import pytest
import pytest_asyncio
from prometheus_client.parser import text_string_to_metric_families

from service.telemetry.catalogue import CATALOGUE
from tests.servers.collector import Collector, Span
from tests.servers.processes import PATIENCE_S, POLL_S, until
from tests.servers.promql import SCRAPED_LABELS, expressions, selectors
from tests.servers.questions import Api
from tests.servers.raw_signalr import RawClient
from tests.servers.up import Up

pytestmark = pytest.mark.asyncio(loop_scope="module")

SETTINGS = {
    "HUBLOG_TRACE_RATIO": "0",  # nothing is traced here but what a client asks for
    "HUBLOG_CANARY_EVERY": "0",
    "OTEL_BSP_SCHEDULE_DELAY": "100",
    "OTEL_EXPORTER_OTLP_HEADERS": "x-tenant=t1",
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def collector() -> AsyncIterator[Collector]:
    async with Collector() as started:
        yield started


@pytest.fixture(scope="module")
def servers(collector: Collector) -> dict[str, str]:
    return {"HUBLOG_OTLP_ENDPOINT": collector.endpoint}


class Asked:
    """A trace that a client began: its own span is the parent of what follows."""

    def __init__(self) -> None:
        self.trace, self.span = secrets.token_hex(16), secrets.token_hex(8)

    @property
    def traceparent(self) -> str:
        return f"00-{self.trace}-{self.span}-01"


async def spans(collector: Collector, asked: Asked, *names: str) -> dict[str, Span]:
    """The spans of a trace by name, once all of these have come; any other is a mistake."""
    await until(lambda: {span.name for span in collector.of(asked.trace)} >= set(names), what=f"spans {names}")
    found = {span.name: span for span in collector.of(asked.trace)}
    assert sorted(found) == sorted(names)
    return found


async def test_one_trace_from_the_command_to_the_rows(
    collector: Collector, gateways: tuple[str, str], api: Api, hub: str, served: Up
) -> None:
    asked = Asked()
    async with RawClient(gateways[0], hub) as sender, RawClient(gateways[1], hub) as receiver:
        await receiver.call("hub.join", b'["g"]')
        sender.send(
            b'{"type":1,"headers":{"traceparent":"%s"},"invocationId":"t","target":"hub.invoke",'
            b'"arguments":[{"to":"group","group":"g"},"say",["seen"]]}\x1e' % asked.traceparent.encode()
        )
        completion = await sender.record(containing=b'"invocationId":"t"')
        await receiver.record(containing=b"seen")
        found = await spans(collector, asked, "hub.invoke", "append", "deliver", "project")
    command, append, deliver, project = (found[name] for name in ("hub.invoke", "append", "deliver", "project"))
    assert command.parent == asked.span
    assert append.parent == command.id
    assert deliver.parent == project.parent == append.id
    assert [span.service for span in (command, append, deliver, project)] == [
        "hublog-gateway",
        "hublog-gateway",
        "hublog-gateway",
        "hublog-projector",
    ]
    assert command.instance == append.instance != deliver.instance, "delivered by the other node"
    assert command.began_ns <= append.began_ns <= append.ended_ns <= command.ended_ns
    assert deliver.attributes["hublog.receivers"] == 1
    assert append.attributes["hublog.sequence"] == deliver.attributes["hublog.sequence"]
    assert project.attributes["hublog.sequence"] == append.attributes["hublog.sequence"]
    assert str(command.attributes["hublog.invocation"]).encode() in completion
    assert command.attributes["hublog.hub"] == hub
    assert not any(span.failed for span in found.values())


async def test_a_command_over_http_belongs_to_the_trace_of_its_sender(
    collector: Collector, gateways: tuple[str, str], api: Api, hub: str, served: Up
) -> None:
    asked = Asked()
    async with RawClient(gateways[0], hub) as receiver, aiohttp.ClientSession() as http:
        url = f"{served.entry('api').url}/v1/hubs/{hub}/invocations"
        body = {"selector": {"to": "all"}, "target": "say", "arguments": ["over http"]}
        async with http.post(url, json=body, headers={"traceparent": asked.traceparent}) as answer:
            assert answer.status == 200, await answer.text()
        await receiver.record(containing=b"over http")
        command = "POST /v1/hubs/{hub}/invocations"
        found = await spans(collector, asked, command, "append", "deliver", "project")
    assert found[command].parent == asked.span
    assert found[command].service == "hublog-api"
    assert found["append"].parent == found[command].id
    assert found["deliver"].parent == found["project"].parent == found["append"].id


async def test_the_request_that_connects_traces_the_opening_of_the_session_and_nothing_after(
    collector: Collector, gateways: tuple[str, str], hub: str
) -> None:
    asked = Asked()
    async with (
        aiohttp.ClientSession() as http,
        http.ws_connect(f"{gateways[0]}/hubs/{hub}", headers={"traceparent": asked.traceparent}) as socket,
    ):
        await socket.send_str('{"protocol":"json","version":1}\x1e')
        assert (await socket.receive_str()).startswith("{}\x1e")
        await socket.send_str('{"type":1,"invocationId":"1","target":"hub.join","arguments":["g"]}\x1e')
        assert '"invocationId":"1"' in await socket.receive_str()
        found = await spans(collector, asked, "session.open", "append", "deliver", "project")
    assert found["session.open"].parent == asked.span
    assert found["append"].parent == found["session.open"].id
    assert found["project"].parent == found["append"].id


async def test_the_negotiation_may_bring_the_trace_of_the_session(
    collector: Collector, gateways: tuple[str, str], hub: str
) -> None:
    """Negotiated on one node, opened on the other."""
    asked = Asked()
    async with aiohttp.ClientSession() as http:
        url = f"{gateways[0]}/hubs/{hub}/negotiate?negotiateVersion=1"
        async with http.post(url, headers={"traceparent": asked.traceparent}) as answer:
            token = (await answer.json())["connectionToken"]
    async with RawClient(gateways[1], hub, f"?id={token}"):
        found = await spans(collector, asked, "session.open", "append", "deliver", "project")
    assert found["session.open"].parent == asked.span


async def test_what_fails_says_so_in_its_span(collector: Collector, gateways: tuple[str, str], hub: str) -> None:
    asked = Asked()
    async with RawClient(gateways[0], hub) as client:
        client.send(
            b'{"type":1,"headers":{"traceparent":"%s"},"invocationId":"t","target":"hub.join","arguments":[[""]]}\x1e'
            % asked.traceparent.encode()
        )
        await client.record(containing=b"invalid_name")
        found = await spans(collector, asked, "hub.join")
    assert found["hub.join"].failed
    assert found["hub.join"].attributes["error.type"] == "invalid_name"


async def test_nobody_else_is_traced(collector: Collector, gateways: tuple[str, str], hub: str) -> None:
    """Headers that ask for nothing, ask for nothing that is kept, or are no headers at all change nothing."""
    asked, unsampled = Asked(), Asked()
    async with RawClient(gateways[0], hub) as client:
        for headers in (
            "null",
            '"x"',
            "{}",
            '{"traceparent":7}',
            '{"traceparent":"00-x"}',
            json.dumps({"traceparent": unsampled.traceparent.replace("-01", "-00")}),
            json.dumps({"traceparent": asked.traceparent}),
        ):
            client.send(
                b'{"type":1,"headers":%s,"invocationId":"%s","target":"hub.groups","arguments":[]}\x1e'
                % (headers.encode(), secrets.token_hex(2).encode())
            )
        await until(lambda: sum(b'"result":[]' in record for record in client.records) == 7, what="seven answers")
        await spans(collector, asked, "hub.groups")
    assert not collector.of(unsampled.trace)
    assert all(span.parent for span in collector.spans), "a trace began here, though none was asked for"
    assert all(headers["x-tenant"] == "t1" for headers in collector.headers)


async def exposed(served: Up, role: str) -> dict[str, str]:
    """What a process exports: family → kind, as Prometheus reads it."""
    async with aiohttp.ClientSession() as http, http.get(f"{served.entry(role).admin_url}/metrics") as answer:
        text = await answer.text()
    return {family.name: family.type for family in text_string_to_metric_families(text)}


@pytest.mark.parametrize("role", ["gateway", "projector", "api"])
async def test_each_process_exports_what_the_table_says(served: Up, role: str) -> None:
    found = {name: kind for name, kind in (await exposed(served, role)).items() if name.startswith("hublog_")}
    said = {one.name.removesuffix("_total"): one.kind for one in CATALOGUE if role in one.roles}
    assert found == said


async def test_everything_on_the_dashboard_and_in_the_alerts_exists(served: Up) -> None:
    found: dict[str, set[str]] = {}
    for role in ("gateway", "projector", "api"):
        for name, labels in await series(served, role):
            found.setdefault(name, set()).update(labels)
    for place, written in expressions().items():
        for name, matched in (one for expression in written for one in selectors(expression)):
            assert name in found, f"{place}: no process exports {name}"
            assert matched.keys() <= found[name] | SCRAPED_LABELS, f"{place}: {name} has only {found[name]}"


async def series(served: Up, role: str) -> set[tuple[str, tuple[str, ...]]]:
    """Every series that a process exports, by name and labels; families without one yet with those of the table."""
    async with aiohttp.ClientSession() as http, http.get(f"{served.entry(role).admin_url}/metrics") as answer:
        families = list(text_string_to_metric_families(await answer.text()))
    told = {(sample.name, tuple(sample.labels)) for one in families for sample in one.samples}
    empty = {one.name for one in families if not one.samples}
    return told | {(one.name, tuple(one.labels)) for one in CATALOGUE if one.name.removesuffix("_total") in empty}


async def values(served: Up, role: str, index: int = 0) -> dict[str, float]:
    """Series with their labels, as they are written."""
    url = f"{served.entry(role, index).admin_url}/metrics"
    async with aiohttp.ClientSession() as http, http.get(url) as answer:
        lines = (await answer.text()).splitlines()
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if not line.startswith("#")}


async def values_with(served: Up, role: str, series: str, *, above: float) -> dict[str, float]:
    """What a process exports as soon as one of its numbers has come so far: some are looked up now and then."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            found = await values(served, role)
            if found.get(series, above) > above:
                return found
            await asyncio.sleep(POLL_S)


async def test_numbers_move_with_what_happens(served: Up, gateways: tuple[str, str], api: Api, hub: str) -> None:
    before = [await values(served, "gateway", index) for index in (0, 1)]
    async with RawClient(gateways[0], hub) as sender:
        async with RawClient(gateways[1], hub, "?resumable=1") as receiver:
            session = (await receiver.call("hub.session", b"[]"))["result"]
            await sender.call("hub.invoke", b'[{"to":"others"},"say",["one"]]')
            await receiver.record(containing=b"one")
        position = (await sender.call("hub.invoke", b'[{"to":"others"},"say",["two"]]'))["result"]["position"]
        resume = f"?resumable=1&resume={session['resumeToken']}&cursor={session['cursor']}"
        async with RawClient(gateways[1], hub, resume) as again:
            await again.record(containing=b"two")
            many = b",".join(b'"g%d"' % number for number in range(200))
            refused = await again.call("hub.join", b"[[%s]]" % many)
            assert refused["error"].startswith("too_many_groups")
            await api.call("GET", "sessions", min_position=position)
            after = [await values(served, "gateway", index) for index in (0, 1)]
            asked = await values(served, "api")
    projector = await values_with(served, "projector", 'hublog_stream_bytes{partition="0"}', above=0)

    def grown(index: int, series: str) -> float:
        return after[index][series] - before[index].get(series, 0.0)

    assert grown(0, 'hublog_appends_total{kind="unconditional",outcome="stored"}') == 2
    assert grown(0, 'hublog_append_duration_seconds_count{kind="unconditional"}') == 2
    assert grown(1, "hublog_delivery_lag_seconds_count") >= 1
    assert 0 < grown(1, "hublog_delivery_lag_seconds_sum") < 20
    assert grown(1, 'hublog_resumes_total{resync="none"}') == 1
    assert grown(1, "hublog_resume_duration_seconds_count") == 1
    assert grown(1, "hublog_resume_missed_messages_sum") == 2
    assert grown(1, 'hublog_limits_hit_total{limit="too_many_groups"}') == 1
    assert grown(1, 'hublog_errors_total{code="too_many_groups"}') == 1
    assert after[1]["hublog_connections"] >= 1
    assert after[1]["hublog_outbox_largest_bytes"] <= after[1]["hublog_outbox_bytes"] + 1
    assert projector['hublog_projection_delay_seconds_count{partition="0"}'] > 0
    assert projector['hublog_stream_bytes{partition="0"}'] > 0
    assert projector['hublog_stream_first_age_seconds{partition="0"}'] > 0
    assert projector['hublog_sessions{state="active"}'] >= 0
    assert asked['hublog_api_requests_total{status="200"}'] >= 1
    assert asked["hublog_api_request_duration_seconds_count"] >= 1
