"""One trace over several processes that share nothing but the log: each has its own connection and its own exporter."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from events import selector, trace
from events.errors import LogUnavailable
from events.ids import HubName
from events.subjects import HubSubjects
from projections.runner import Projector
from service.delivery import repair
from service.delivery.feed import Dispatcher
from service.delivery.interest import Receiver
from service.delivery.outbox import Outbox
from service.log.author import Author
from service.log.jetstream import JetStreamLog, jetstream_log, migrate_log
from service.process.batches import Batches
from service.sessions.manager import session_manager
from service.sessions.registry import NewSession
from service.sessions.router import Call
from service.telemetry.spans import OtelSpans
from service.telemetry.tracing import Tracing, within
from service.up.nats_server import NatsServer
from tests.servers.delivery import Transport
from tests.servers.event_logs import until


class Process:
    """One process as far as traces go."""

    def __init__(self, name: str) -> None:
        self.exporter = InMemorySpanExporter()
        self.spans = OtelSpans(self.exporter, service=f"hublog-{name}", instance=name, version="0")
        self.tracing = Tracing(self.spans)

    def named(self, name: str) -> ReadableSpan | None:
        self.spans.flush()
        return next((span for span in self.exporter.get_finished_spans() if span.name == name), None)


@pytest.fixture
async def connect(clean_nats: NatsServer) -> AsyncIterator[Callable[..., object]]:
    await migrate_log(clean_nats.url, random=os.urandom(3))
    async with AsyncExitStack() as stack:

        async def one(process: Process) -> JetStreamLog:
            log = await jetstream_log(clean_nats.url, name="traced", tracing=process.tracing)
            stack.push_async_callback(log.close)
            stack.callback(process.spans.close)
            return log

        yield one


async def test_one_trace_spans_command_append_delivery_elsewhere_and_projection(
    connect: Callable[[Process], object], database: str, unique_hub: str
) -> None:
    sender, node, projecting = Process("sender"), Process("node"), Process("projector")
    log, node_log, projector_log = [await connect(one) for one in (sender, node, projecting)]  # type: ignore[misc]
    subjects = HubSubjects(HubName(unique_hub), 1)
    dispatcher = Dispatcher(0, node_log, node_log, lambda _kind, _target, arguments, _at: arguments[1:-1], node.tracing)
    projector = Projector(database, projector_log, 0, on_written=Batches(0, projecting.tracing).written)
    running = [asyncio.ensure_future(repair.run(dispatcher)), asyncio.ensure_future(projector.run())]
    try:
        transport = Transport()
        outbox = Outbox(transport, 1 << 20, lambda: pytest.fail("nobody is slow"))
        receiver = Receiver(
            Author().new_session(), "c", None, outbox, lambda *_: None, lambda *_: pytest.fail("a hole")
        )
        outbox.uncork(b"0")
        dispatcher.interest.expect(subjects, receiver)
        await session_manager(unique_hub, node_log).sessions.register(NewSession(receiver.session, "c"))
        router = session_manager(unique_hub, log).router
        command = sender.tracing.command("hub.invoke", None, {})
        assert command is not None
        with within(command):
            await router.invoke(Call(selector.All(), "say", b"[1]", actor="system:api"))
        command.end()
        await router.invoke(Call(selector.All(), "say", b"[2]", actor="system:api"))
        await until(lambda: transport.frames[1:] == [1, 2])
        await until(lambda: projecting.named("project") is not None)
        parts = [sender.named("hub.invoke"), sender.named("append"), node.named("deliver"), projecting.named("project")]
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
    invoke, append, deliver, project = [part for part in parts if part is not None]
    assert len({part.context.trace_id for part in (invoke, append, deliver, project) if part.context}) == 1
    assert invoke.parent is None
    assert [part.parent and part.parent.span_id for part in (append, deliver, project)] == [
        invoke.context and invoke.context.span_id,
        append.context and append.context.span_id,
        append.context and append.context.span_id,
    ]
    assert project.attributes is not None
    assert project.attributes["hublog.sequence"] == 2
    count = sum(len(one.exporter.get_finished_spans()) for one in (sender, node, projecting))
    assert count == 4, "the second call was traced, too"


async def test_a_process_that_exports_nothing_passes_contexts_on(
    connect: Callable[[Process], object], clean_nats: NatsServer, unique_hub: str
) -> None:
    await connect(Process("other"))  # type: ignore[misc]
    log = await jetstream_log(clean_nats.url, name="off")
    try:
        router = session_manager(unique_hub, log).router
        traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
        span = Tracing().command("hub.invoke", traceparent, {})
        assert span is not None
        with within(span):
            await router.invoke(Call(selector.All(), "say", b"[1]", actor="system:api"))
        await router.invoke(Call(selector.All(), "say", b"[2]", actor="system:api"))
        found = [trace.of(event.headers) async for event in log.read("ev.0.>", 1, 2)]
    finally:
        await log.close()
    assert found == [traceparent, None]


async def test_an_append_that_fails_says_so_in_its_span(connect: Callable[[Process], object], unique_hub: str) -> None:
    process = Process("sender")
    log = await connect(process)  # type: ignore[misc]
    router = session_manager(unique_hub, log).router
    await log.close()
    command = process.tracing.command("hub.invoke", None, {})
    assert command is not None
    with within(command), pytest.raises(LogUnavailable):
        await router.invoke(Call(selector.All(), "say", b"[1]", actor="system:api"))
    append = process.named("append")
    assert append is not None
    assert append.attributes is not None
    assert append.attributes["error.type"] == "log_unavailable"
    assert not append.status.is_ok


class Away(SpanExporter):
    """A collector that takes nothing."""

    def __init__(self) -> None:
        self.asked = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.asked += 1
        return SpanExportResult.FAILURE


def test_spans_that_nobody_takes_are_counted_and_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    away = Away()
    spans = OtelSpans(away, service="hublog-x", instance="x", version="0")
    for _ in range(3):
        spans.start("a", "server", None, {}).end()
        spans.flush()
    assert (spans.exporting.sent, spans.exporting.lost, away.asked) == (0, 3, 3)
    spans.start("a", "server", None, {}).end()
    spans.close()
    assert spans.exporting.lost == 4
    assert away.asked == 3, "a process that stops waits for it again"
    assert capsys.readouterr().out.count("trace.not_exported") == 1


def test_a_span_names_its_place_for_others() -> None:
    exporter = InMemorySpanExporter()
    spans = OtelSpans(exporter, service="hublog-x", instance="x", version="0")
    above = spans.start("above", "server", None, {"n": 1})
    below = spans.start("below", "consumer", above.traceparent, {}, 1_000)
    assert trace.valid(above.traceparent)
    assert trace.sampled(below.traceparent)
    assert trace.trace_id(above.traceparent) == trace.trace_id(below.traceparent)
    below.end("conflict")
    above.end()
    spans.close()
    found = {span.name: span for span in exporter.get_finished_spans()}
    assert found["below"].start_time == 1_000
    assert found["above"].resource.attributes["service.name"] == "hublog-x"
